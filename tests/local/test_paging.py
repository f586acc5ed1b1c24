"""A model that memory does not hold: refused with the numbers, or run from its packed file with the same answer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold.base.errors import CapacityExceeded
from freehold.run.models.packing.packer import PagingForecast, read_rate
from tests.vectors.files import write_gguf

IDS = [7, 70, 20, 33, 90, 121, 8, 9]


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch):
    """Less than the weights of a tiny model; the cache asks elsewhere."""
    for module in ("freehold.run.models.load", "freehold.run.local.opening"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: 10_000)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("freehold.run.formats.filemap.RACY_S", -1.0)
    freehold.pull(str(write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")))
    return "tiny"


def test_model_beyond_memory_is_refused_with_what_paging_would_give(model: str, little_memory: None):
    with pytest.raises(
        CapacityExceeded, match=r"needs .* of memory for its weights; 10\.0 kB are free"
    ) as error:
        freehold.load(model, context=64, threads=1)
    assert re.search(
        r"--allow-paging .* tokens a second: a token reads .* and the disk gives", error.value.hint
    )


def test_paged_model_answers_as_one_in_memory_and_says_that_it_is_paged(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with freehold.load(model, context=64, threads=1) as whole:
        expected = whole.score(IDS)
    for pack in (tmp_path / "home" / "packs").glob("*.pack"):
        pack.unlink()
    for module in ("freehold.run.models.load", "freehold.run.local.opening"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: 10_000)
    for _ in range(2):  # its pack is streamed, then found
        with freehold.load(model, context=64, threads=1, allow_paging=True) as paged:
            assert np.array_equal(paged.score(IDS), expected)
            assert any(note.startswith("runs from disk: ") for note in paged.info.notes)
    assert len(list((tmp_path / "home" / "packs").glob("*.pack"))) == 1


def test_forecast_lies_between_all_from_disk_and_what_memory_holds():
    seen = PagingForecast(need=40 << 30, have=10 << 30, token=20 << 30, rate=2 << 30)
    assert seen.slowest == pytest.approx(0.1) and seen.fastest == pytest.approx(0.1 / 0.75)
    assert "0.1 to 0.13 tokens a second" in str(seen)


def test_rate_is_measured_on_the_files_themselves(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * (1 << 20))
    assert read_rate([tmp_path / "a", tmp_path / "b"], seconds=0.01) > 0


def test_paged_mixture_answers_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("freehold.run.formats.filemap.RACY_S", -1.0)
    freehold.pull(str(write_gguf("qwen3moe", tmp_path / "mixture.gguf")))
    with freehold.load("mixture", context=64, threads=1) as whole:
        expected = whole.score(IDS)
    for module in ("freehold.run.models.load", "freehold.run.local.opening"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: 10_000)
    with freehold.load("mixture", context=64, threads=1, allow_paging=True) as paged:
        assert np.array_equal(paged.score(IDS), expected)
