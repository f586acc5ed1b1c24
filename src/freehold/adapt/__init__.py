"""Making a model one's own: quantised, taught, aligned, reinforced, distilled, each with a receipt.

run (a folder of work that can be resumed) and receipt (what was done, to what, with which result) serve all verbs;
extra finds torch, which quantising does without.
"""
