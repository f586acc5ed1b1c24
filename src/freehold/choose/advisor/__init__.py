"""Answers with reasons, from the catalogue's facts, this machine and the user's own facts.

Knows no engine and no network.
Path: a verb of the command line -> advisor -> catalog.
"""
