"""Answers with reasons: the catalogue's facts, this machine and the user's own facts put together.

Knows no engine and no network.
Path: a verb of the command line -> advisor -> catalog.
"""
