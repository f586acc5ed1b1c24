"""Opens a model file by what it contains, never by its name.

Knows which reader takes which first bytes; knows nothing of what the readers do.
Path: store (a path) -> open_model_file -> gguf.open_gguf or safetensors.open_safetensors
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from freehold.formats.filemap import not_a_model, read_head
from freehold.formats.gguf import MAGIC, GGUFFile, open_gguf
from freehold.formats.safetensors import SafetensorsFile, is_safetensors, open_safetensors

ModelFile: TypeAlias = GGUFFile | SafetensorsFile


def open_model_file(path: str | Path) -> ModelFile:
    """Open a GGUF file, a safetensors file, or a directory of safetensors.

    Raises ModelNotFound when nothing is there, BadModelFile saying what the file is instead.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False for what may not be looked at
        return open_safetensors(path)
    head = read_head(path)
    if head.startswith(MAGIC):
        return open_gguf(path)
    if is_safetensors(head):
        return open_safetensors(path)
    raise not_a_model(path, head)


def check_model_file(path: str | Path) -> None:
    """Raise BadModelFile for a file that does not start as a model does, and for a device or pipe; reads its head."""
    head = read_head(path := Path(path))
    if not (head.startswith(MAGIC) or is_safetensors(head)):
        raise not_a_model(path, head)
