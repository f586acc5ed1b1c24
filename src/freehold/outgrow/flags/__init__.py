"""Flags of other engines as data: what each version takes, and which of them a deployment refuses.

Path: drivers -> schema.nearest -> FlagSchema -> schema.checked -> PlannedFlag
"""
