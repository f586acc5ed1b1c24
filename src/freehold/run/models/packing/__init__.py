"""Weights become panels: in memory, in packed files, rounded on the way, or read from disk as they are needed."""
