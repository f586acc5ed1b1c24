"""The engine process's own side of the socket; `python -m freehold.serve.worker.process` runs it. No server does."""
