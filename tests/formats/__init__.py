"""Tests of freehold.run.formats."""
