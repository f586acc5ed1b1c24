"""Tests of freehold.tokenizer."""
