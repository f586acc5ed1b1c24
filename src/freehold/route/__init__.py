"""Which model answers: rented ones behind one door, and the gateway with its labels, budgets and ledger.

Imports base to choose.
"""
