"""Routes of the server itself: health, readiness, metrics, version, the page at `/`, and what only its owner may do."""
