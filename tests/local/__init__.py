"""The local model: text and jobs over a tiny random model."""
