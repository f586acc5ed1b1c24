"""The HTTP side: protocols, keys and limits. It knows models only through contract.py, never an engine."""
