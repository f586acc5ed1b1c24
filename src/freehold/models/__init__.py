"""Model families: one file per architecture, config and weight map in, forward pass out, written in native ops."""
