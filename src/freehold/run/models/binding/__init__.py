"""A model file's tensors meet the declared weights: found by name, joined, cut, checked; or refused by name."""
