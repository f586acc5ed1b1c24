"""What `advise`, `fit`, `license`, `why`, `cost` and `deploy capacity` find, as plain values.

One maker for --json, the page and Python.
"""
