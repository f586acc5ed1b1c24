"""Tests of freehold.models."""
