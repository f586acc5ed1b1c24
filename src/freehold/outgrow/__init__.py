"""Engines beyond our own: planned, started, guarded and operated behind our server, one file an engine."""
