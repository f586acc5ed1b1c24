"""Runs: answers being made, which belong to the server and not to a connection."""
