"""The engine process's own side of the socket; `python -m freehold.worker.process` runs it. The server imports none."""
