"""The kinds of layers by what their cache must still hold for a prefix to be taken over.

Knows a model's layers; knows no block. A hit after p tokens is good when every layer has what it needs to compute
token p as if it had computed all before it. Full layers keep all positions in the blocks of one table; window layers
may lie in slots, which follow the window (slots.py). The families of the other kinds have their place here.
Path: disk.dependencies -> layer_kinds
"""

from __future__ import annotations

from enum import Enum

from freehold.models.loader import LoadedModel


class LayerKind(Enum):
    """What a layer needs of the p tokens before a hit."""

    FULL = "full"  # keys and values of all p positions
    WINDOW = "window"  # those of the last window - 1 positions; blocks wholly before them may be gone
    LATENT = "latent"  # one compressed row for each of p positions, which keys and values are made from
    RECURRENT = "recurrent"  # the state after exactly p tokens: hits only where a snapshot of it was kept


def layer_kinds(model: LoadedModel) -> list[LayerKind]:
    """Give the kind of each layer of a model."""
    return [LayerKind.WINDOW if window else LayerKind.FULL for window in model.windows]
