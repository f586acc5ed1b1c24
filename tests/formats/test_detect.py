"""A model is opened by its bytes, whatever its name; another file is called by its own name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.base.errors import BadModelFile, ModelNotFound
from freehold.run.formats import GGUFFile, SafetensorsFile, open_gguf, open_model_file
from tests.formats.gguf_writer import ARCHITECTURE, write_gguf


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.safetensors", ARCHITECTURE)
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "b.gguf")
    assert isinstance(open_model_file(tmp_path / "a.safetensors"), GGUFFile)
    assert isinstance(open_model_file(str(tmp_path / "b.gguf")), SafetensorsFile)


def test_a_directory_opens_as_safetensors(tmp_path: Path) -> None:
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    assert isinstance(open_model_file(tmp_path), SafetensorsFile)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "an empty file"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (bytes(300), "nothing but zeros"),
        (b'{"error": "not found"}', "JSON"),
        (b"Access denied\n", "text file"),
        (b"tjgg\x01\x00\x00\x00", "before GGUF"),
        (b"\xde\xad\xbe\xef" * 9, "de ad be ef"),
    ],
)
@pytest.mark.parametrize("opener", [open_model_file, open_gguf])
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, words: str, opener: object) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadModelFile, match=words) as caught:
        opener(path)  # type: ignore[operator]
    assert str(path) in caught.value.message and caught.value.hint


def test_a_missing_path_is_model_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path / "none" / "x.gguf", "nul\0.gguf"):
        with pytest.raises(ModelNotFound):
            open_model_file(path)


def test_a_directory_is_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="a directory"):
        open_gguf(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadModelFile, match="not a regular file"):
        open_model_file(tmp_path / "pipe")
