"""Runs untrusted templates and grammars in processes that can be killed: children.py starts and ends them."""
