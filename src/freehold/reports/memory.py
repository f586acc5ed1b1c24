"""What a model needs in memory, in one sentence: Models, Engine, `fit` and `ps` all say this one.

Knows a prediction; what a loaded engine reserves and what its process holds are the server's figures.
Path: models_json, fit_report, cli/fit -> needs
"""

from __future__ import annotations

from freehold.advisor.fit import Fit, Misfit
from freehold.machine import show_bytes


def needs(fitted: Fit | Misfit) -> str:
    """Return "needs 648.2 MB at 4,096 tokens of context"; "" where its sizes are not known.

    That is the process with its weights and the cache of one conversation of this length.
    """
    if fitted.memory is None:
        return ""
    return f"needs {show_bytes(fitted.memory.total)} at {fitted.context:,} tokens of context"
