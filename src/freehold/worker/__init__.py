"""Models in processes of their own: an engine each behind a socket, and what keeps it alive."""
