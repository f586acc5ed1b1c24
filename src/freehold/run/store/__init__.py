"""Where weights come from and where they are stored: sources, downloads, and the models other programs have.

Everything Freehold writes is under one home; foreign files are referenced, never copied or moved.
Path: cli/stored or freehold.load -> Store.pull or Store.resolve -> a source -> files and a manifest.
"""

from freehold.run.store.contract import Event, Finished, Note, Planned, Progress
from freehold.run.store.records import Listed, ModelRef, Removed
from freehold.run.store.store import Store

__all__ = ["Event", "Finished", "Listed", "ModelRef", "Note", "Planned", "Progress", "Removed", "Store"]
