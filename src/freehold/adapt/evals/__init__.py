"""Evaluations: the user's own cases, judges of answers, and paired comparisons of models.

samples (a file -> cases) -> trial (cases x models -> marks, kept) -> paired (marks -> intervals, differences).
"""
