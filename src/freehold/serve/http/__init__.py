"""The HTTP side: protocols, keys and limits. It knows models only through serving.py, never an engine."""
