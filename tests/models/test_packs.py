"""A pack gives back the very panels it was written from, and a damaged one is never used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from freehold._native import Matrix, Threads
from freehold.base.errors import CapacityExceeded, StoreError
from freehold.run.models.packing import packs
from freehold.run.models.packing.packs import drop_torn, open_pack, pack_path, write_pack

DIGEST = "ab" * 32


@pytest.fixture
def matrices() -> dict[str, Matrix]:
    threads = Threads(1)
    floats = np.random.default_rng(0).standard_normal((37, 96)).astype(np.float32)
    bytes_ = np.random.default_rng(1).integers(0, 60, (5, 144), np.uint8)
    return {
        "a": Matrix.pack(floats.view(np.uint8).reshape(-1), "F32", 37, 96, threads),
        "b.weight": Matrix.pack(bytes_.reshape(-1), "Q4_K", 5, 256, threads),
    }


def test_pack_returns_the_same_panels(tmp_path: Path, matrices: dict[str, Matrix]) -> None:
    path = pack_path(tmp_path, DIGEST)
    write_pack(path, DIGEST, matrices)
    back = open_pack(path, DIGEST)
    assert back is not None and list(back) == list(matrices)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(back[name].panels(), matrix.panels())
        np.testing.assert_array_equal(back[name].row(4), matrix.row(4))


def test_pieces_of_any_length_lie_where_the_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "CHUNK", 8)
    pieces = [(0, memoryview(b"abcdefghijk")), (16, memoryview(b"l")), (29, memoryview(b"mno"))]
    chunks = [bytes(chunk) for chunk in packs._chunks(pieces, 34)]
    assert b"".join(chunks) == b"abcdefghijk".ljust(16, b"\0") + b"l".ljust(13, b"\0") + b"mno\0\0"
    assert [len(chunk) for chunk in chunks] == [8, 8, 8, 8, 2]


@pytest.mark.parametrize("at", [0, 9, 20, 60])
def test_damaged_header_is_ignored(tmp_path: Path, matrices: dict[str, Matrix], at: int) -> None:
    path = pack_path(tmp_path, DIGEST)
    write_pack(path, DIGEST, matrices)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert open_pack(path, DIGEST) is None


def test_truncated_or_foreign_pack_is_ignored(tmp_path: Path, matrices: dict[str, Matrix]) -> None:
    path = pack_path(tmp_path, DIGEST)
    write_pack(path, DIGEST, matrices)
    assert open_pack(path, "cd" * 32) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert open_pack(path, DIGEST) is None
    assert open_pack(tmp_path / "absent.pack", DIGEST) is None


def test_budget_drops_the_least_recently_used(tmp_path: Path, matrices: dict[str, Matrix]) -> None:
    first, second = pack_path(tmp_path, "11" * 32), pack_path(tmp_path, "22" * 32)
    write_pack(first, "11" * 32, matrices)
    size = first.stat().st_size
    write_pack(second, "22" * 32, matrices, budget=size)
    assert second.exists() and not first.exists()


def test_pack_beyond_the_budget_is_refused_and_costs_no_other_pack(
    tmp_path: Path, matrices: dict[str, Matrix]
) -> None:
    first, second = pack_path(tmp_path, "11" * 32), pack_path(tmp_path, "22" * 32)
    write_pack(first, "11" * 32, matrices)
    with pytest.raises(CapacityExceeded, match="budget"):
        write_pack(second, "22" * 32, matrices, budget=first.stat().st_size - 1)
    assert first.exists()


def test_full_disk_and_a_folder_that_cannot_be_made_are_named(
    tmp_path: Path, matrices: dict[str, Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not kept"):
        write_pack(pack_path(tmp_path / "file", DIGEST), DIGEST, matrices)
    monkeypatch.setattr(packs.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(CapacityExceeded, match="has 100 bytes free"):
        write_pack(pack_path(tmp_path, DIGEST), DIGEST, matrices)
    assert not list(tmp_path.glob("*.pack"))


def test_packs_of_an_older_layout_go_when_one_is_written(tmp_path: Path, matrices: dict[str, Matrix]) -> None:
    old = tmp_path / f"{DIGEST}-v0.pack"
    old.write_bytes(b"x")
    write_pack(pack_path(tmp_path, DIGEST), DIGEST, matrices)
    assert not old.exists()


def test_what_a_killed_writer_left_is_dropped_and_what_is_being_written_stays(
    tmp_path: Path, matrices: dict[str, Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / f"{'22' * 32}-v1.12345.part"
    torn.write_bytes(b"x")
    seen: list[list[str]] = []
    chunks = packs._chunks

    def watched(*given: object) -> object:
        for chunk in chunks(*given):  # type: ignore[arg-type]
            drop_torn(tmp_path)
            seen.append([p.name for p in tmp_path.glob("*.part")])
            yield chunk

    monkeypatch.setattr(packs, "_chunks", watched)
    path = pack_path(tmp_path, DIGEST)
    write_pack(path, DIGEST, matrices)
    assert seen and all(len(names) == 1 and names[0].startswith(DIGEST) for names in seen)
    assert path.exists() and not list(tmp_path.glob("*.part"))
