"""Finds personal data and secrets in a request's text."""
