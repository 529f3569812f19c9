"""The resident decode service: one pack, one runner, an engine of slots, and an OpenAI-compatible surface.

Calls go one way: `http` (the surface) calls `engine` (slots, batches, text), and that a `runner` (tokens in,
tokens out). `service` is the life of the process around them, `plan` its memory.
"""
