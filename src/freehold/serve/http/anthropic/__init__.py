"""Anthropic's routes under /v1: fields in, jobs out; chunks in, events and content blocks out."""
