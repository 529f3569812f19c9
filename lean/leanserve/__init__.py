"""The resident decode service: one pack, one runner, an engine of slots, and an OpenAI-compatible surface."""
