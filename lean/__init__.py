"""leanstack: one model, one chip, a small sealed appliance, and evidence anyone can re-run."""

__version__ = "0.1.0"
