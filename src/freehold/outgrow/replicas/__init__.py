"""Engines behind one name: kept alive, asked, continued from one another, replaced in turn."""
