"""Quantising a model: types chosen, weights encoded, a file written, and the difference from its source measured.

Needs no torch. recipes and mix choose each tensor's type; calibration yields a layer's second moments at a time, and
trellis encodes a matrix of 2, 3 or 4 bits by them so that its errors cancel; encoding makes the other types; writing
writes the file in steps that a crash keeps; report measures; quantising is the order of it all.
"""
