"""Ollama's native protocol under /api: the fields its clients send and read."""
