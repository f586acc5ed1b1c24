"""Tiny random models of every family: configurations as data, weights drawn by name, both file formats."""
