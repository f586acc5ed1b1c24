"""Model families, one file per architecture: config and weight map in, forward pass out, in native ops."""
