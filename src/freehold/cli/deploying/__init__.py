"""What lies under `freehold deploy`: a file a verb, and what they share."""
