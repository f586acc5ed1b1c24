"""Tests of freehold.formats."""
