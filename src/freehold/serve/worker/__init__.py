"""Models in processes of their own: each has an engine, reached by a socket and restarted when it dies."""
