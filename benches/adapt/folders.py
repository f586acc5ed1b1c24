"""Where a benchmark's run lies: in a folder that is kept, so that it resumes, or in one that is deleted.

Path: benches/adapt/preferences.py, benches/adapt/distil.py -> work_folder
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """Give a folder to work in: `kept`, or a temporary one."""
    if kept is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
