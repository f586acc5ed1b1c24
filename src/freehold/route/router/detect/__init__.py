"""Finds personal data and secrets in a text: a sieve of regular expressions, then a check of each hit."""
