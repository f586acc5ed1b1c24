"""Tests of freehold.run.models."""
