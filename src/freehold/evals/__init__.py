"""Evaluations: cases of the user's own, how an answer is judged, and how models compare on the same cases.

samples (a file -> cases) -> trial (cases x models -> marks, kept) -> paired (marks -> intervals, differences).
"""
