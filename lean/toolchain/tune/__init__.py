"""The search for tiles on the GPU that is here."""
