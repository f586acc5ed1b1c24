"""Which model, on which machine, at what cost and under which licence.

Imports base and run.
"""
