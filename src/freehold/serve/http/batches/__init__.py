"""Batches of requests that run when nothing else does: journal, queue and the files they come in."""
