"""Batches: lines of a file that are answered on idle capacity, and survive the server."""
