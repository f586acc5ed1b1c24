"""The verbs of `freehold deploy`: a file each, and what they share."""
