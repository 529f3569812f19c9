"""The OpenAI-compatible HTTP surface: it calls the engine, and the engine knows nothing of it."""
