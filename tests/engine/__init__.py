"""Tests of freehold.engine."""
