"""`python -m freehold.serve.worker.process.judge PARENT`: judges the models of one line of JSON, and ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from freehold.base.errors import ModelNotFound, UnsupportedModel
from freehold.base.sandbox.children import follow_parent


def main() -> None:
    """Answer [name, path, rounding] of each model with [why it is refused, a hint, bytes]."""
    follow_parent(int(sys.argv[1]))  # before what takes long to import
    json.dump([_judged(*row) for row in json.load(sys.stdin)], sys.stdout)


def _judged(name: str, path: str, rounding: str) -> tuple[str, str, int]:
    from freehold.run.local.runnable import check_runs, unrunnable, weight_bytes

    if path:
        return unrunnable(Path(path)), "", weight_bytes(Path(path), rounding) if rounding else 0
    try:
        check_runs(name)
    except UnsupportedModel as e:
        return e.message, e.hint, 0
    except ModelNotFound:  # the store says so itself
        return "", "", 0
    return "", "", 0


if __name__ == "__main__":
    main()
