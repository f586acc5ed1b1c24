"""Compares the mmproj of every tiny model that sees with the one that llama.cpp's own converter makes of its folder.

Run from the repository's root: `python -m tests.vectors.check_towers CONVERTED [NAME ...]`, where CONVERTED is the
folder that convert.py filled; without names it checks the towers that are there. Prints keys that differ, as those of
limits may; exits 1 where tensors do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from freehold.run.formats import open_gguf
from freehold.run.models.tiny import make


def check(name: str, converted: Path) -> list[str]:
    """Print the keys that differ, and return what is wrong with tensors."""
    tiny = make.config(name)
    ours = make.mmproj_tensors(tiny)
    wrong = []
    with open_gguf(converted / f"mmproj-{name}.gguf") as file:
        for key in sorted({*tiny.mmproj, *file.metadata}):
            mine, theirs = tiny.mmproj.get(key), _plain(file.metadata.get(key))
            if key.startswith("clip.") and not _alike(mine, theirs):
                print(f"  {key}: {mine!r:.60} here, {theirs!r:.60} there")
        for key in sorted({*ours, *file.tensors}):
            if key not in ours or key not in file.tensors:
                wrong.append(f"{key} is {'there' if key in file.tensors else 'here'} alone")
            elif ours[key].shape != (shape := file.tensors[key].shape):
                wrong.append(f"{key} has the shape {ours[key].shape} here, {shape} there")
            elif not np.array_equal(ours[key], file.tensors[key].numpy()):
                wrong.append(f"{key} has other values")
    return wrong


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _alike(mine: Any, theirs: Any) -> bool:
    """Whether two values of a key are one; a GGUF's floats have 32 bits."""
    if isinstance(mine, int | float | list) and isinstance(theirs, int | float | list):
        return np.array_equal(np.array(mine, np.float32), np.array(theirs, np.float32))
    return mine == theirs


def main() -> int:
    """Check each model, and print what differs."""
    converted, *names = sys.argv[1:]
    failed = False
    there = [each for each in make.names() if (Path(converted) / f"mmproj-{each}.gguf").is_file()]
    for name in names or there:
        print(name, flush=True)
        for tensor in check(name, Path(converted)):
            print(f"  {tensor}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
