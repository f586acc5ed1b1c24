"""Weights of 2, 3 and 4 bits: what a model's inputs are like (calibration), and rows encoded so that their
errors cancel.

Needs no torch. calibration yields a layer's second moments at a time; trellis encodes a matrix by them.
"""
