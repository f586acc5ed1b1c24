"""What layers keep of the tokens before a step: one contract, one file a kind, found by prefix, kept on disk."""
