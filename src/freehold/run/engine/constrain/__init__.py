"""Guided decoding: grammars compiled to logits masks, in a process of their own where they may be hostile."""
