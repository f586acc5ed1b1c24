"""One engine as processes of ours: environment, start, log, end, and what it died of."""
