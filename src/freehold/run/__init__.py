"""Own a model: from its files to an answer in this process.

Imports base.
"""
