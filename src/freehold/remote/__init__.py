"""ChatModels behind HTTP: one connection (http.py), one file a wire."""
