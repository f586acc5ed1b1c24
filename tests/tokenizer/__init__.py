"""Tests of freehold.run.tokenizer."""
