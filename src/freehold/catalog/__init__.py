"""Models by their short names: what each is, where it can be had, and who says so.

Dated, sourced facts in `data/*.toml`, one file per publisher, read on the first question; a fact that
changes is appended with a new date, never overwritten. Knows no network and no disk but its own data.
Path: store.parse_ref -> catalog.find -> Entry -> the store's sources.
"""

from freehold.catalog.entries import Entry, File, default_model, entries, find, suggestions

__all__ = ["Entry", "File", "default_model", "entries", "find", "suggestions"]
