"""Model families, one file per architecture: config and weights in, a forward pass of native ops out."""
