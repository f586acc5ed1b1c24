"""How many replicas an objective takes: an engine's steps simulated over a trace of requests, event by event."""
