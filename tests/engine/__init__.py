"""Tests of freehold.run.engine."""
