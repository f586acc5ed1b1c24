"""What every protocol shares: calls, keys, limits, bodies, metrics, streams. It knows no protocol."""
