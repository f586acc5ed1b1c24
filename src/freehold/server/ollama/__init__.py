"""Ollama's native protocol under /api: what its clients send and read; the work is done behind it."""
