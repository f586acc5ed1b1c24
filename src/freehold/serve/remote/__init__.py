"""ChatModels over HTTP: one connection (http.py), one file for each wire protocol."""
