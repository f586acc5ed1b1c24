"""Damage of a packed copy is noticed before a token leaves, named, and mended by loading again."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold import LLM
from freehold.base.errors import FreeholdError, NonFiniteLogits
from freehold.run.formats import open_gguf
from freehold.run.local import open_model
from freehold.run.store import ModelRef
from tests.vectors.files import write_gguf

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    path = write_gguf("qwen2", tmp_path_factory.mktemp("damaged") / "tiny.gguf", dtype="Q8_0")
    return ModelRef("tiny", path, "gguf", DIGEST, path.stat().st_size, "user", "", "", (path,))


@pytest.fixture
def opened(ref: ModelRef, tmp_path: Path) -> Callable[[], LLM]:
    return lambda: open_model(ref, context=64, threads=1, packs=tmp_path / "packs", speculate=False)


@pytest.fixture
def pack(opened: Callable[[], LLM], tmp_path: Path) -> Path:
    with opened():
        pass
    (made,) = (tmp_path / "packs").iterdir()
    return made


def answer(llm: LLM) -> list[int]:
    return list(llm.generate([5, 6, 7], max_tokens=6, temperature=0).token_ids)


def largest(pack: Path) -> tuple[int, int]:
    """Where the greatest matrix of a pack begins and ends, by its header."""
    data = pack.read_bytes()
    header = json.loads(data[44 : 44 + int.from_bytes(data[8:12], "little")])
    most = max(header["matrices"], key=lambda m: m["bytes"])
    return most["at"], most["at"] + most["bytes"]


def flip(pack: Path, bits: int, seed: int = 0) -> None:
    rng, (begin, end) = random.Random(seed), largest(pack)
    with pack.open("r+b") as file:
        for _ in range(bits):
            at = rng.randrange(begin, end)
            file.seek(at)
            byte = file.read(1)[0] ^ 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes([byte]))


def refused(llm: LLM, says: str) -> FreeholdError:
    with pytest.raises(FreeholdError) as error:
        answer(llm)
    assert type(error.value).__name__ == "DamagedPack" and says in error.value.message, error.value
    return error.value


@pytest.mark.parametrize("bits", [1, 20])
def test_flipped_bits_of_a_pack_end_the_first_answer_and_the_next_load_is_sound(
    bits: int, opened: Callable[[], LLM], pack: Path
) -> None:
    with opened() as llm:
        sound = answer(llm)
    flip(pack, bits)
    with opened() as llm:
        error = refused(llm, str(pack))
        assert "removed" in error.message and "again" in error.hint
        refused(llm, str(pack))
    assert not pack.exists()
    with opened() as llm:
        assert answer(llm) == sound
    assert pack.exists()


def test_a_pack_written_over_while_it_is_in_use_is_noticed_at_the_next_token(
    opened: Callable[[], LLM], pack: Path
) -> None:
    with opened() as llm:
        sound = answer(llm)
        pack.touch()
        assert answer(llm) == sound, "another time of writing alone is no damage"
        flip(pack, 20)
        refused(llm, "is damaged")


def test_a_pack_cut_short_while_it_is_in_use_is_an_error_and_no_signal(
    opened: Callable[[], LLM], pack: Path
) -> None:
    with opened() as llm:
        sound = answer(llm)
        os.truncate(pack, 4096)
        refused(llm, "cut short")
    with opened() as llm:
        assert answer(llm) == sound


def test_another_pack_under_the_name_is_left_alone(opened: Callable[[], LLM], pack: Path) -> None:
    with opened() as llm:
        answer(llm)
        whole = pack.read_bytes()
        pack.rename(pack.with_suffix(".old"))
        pack.write_bytes(whole)
        os.truncate(pack.with_suffix(".old"), 4096)
        refused(llm, "cut short")
    assert pack.read_bytes() == whole


def test_nan_from_a_pack_is_the_packs_and_not_the_models(
    opened: Callable[[], LLM], pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.run.models.packing.packs.AGAIN_S", 0.0)
    with opened() as llm:
        answer(llm)
        times = pack.stat()
        begin, end = largest(pack)
        with pack.open("r+b") as file:
            file.seek(begin)
            file.write(b"\xff" * (end - begin))  # among them the scales, which become NaN
        os.utime(pack, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk leaves it
        refused(llm, str(pack))
    assert not pack.exists()


def test_nan_of_the_model_itself_stays_the_models(ref: ModelRef, tmp_path: Path) -> None:
    hurt = tmp_path / "hurt.gguf"
    data = bytearray(ref.path.read_bytes())
    with open_gguf(ref.path) as file:
        start = len(data) - sum((t.nbytes + 31) // 32 * 32 for t in file.tensors.values())
    data[start:] = b"\xff" * (len(data) - start)
    hurt.write_bytes(data)
    bad = ModelRef("hurt", hurt, "gguf", "cd" * 32, len(data), "user", "", "", (hurt,))
    for _ in range(2):  # packed in memory, then mapped
        with (
            open_model(bad, context=64, threads=1, packs=tmp_path / "packs") as llm,
            pytest.raises(NonFiniteLogits, match="the model computed NaN"),
        ):
            answer(llm)
    assert len(list((tmp_path / "packs").iterdir())) == 1


def test_packs_are_their_owners_alone_whatever_the_umask(opened: Callable[[], LLM], tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened():
            pass
    finally:
        os.umask(before)
    folder = tmp_path / "packs"
    (pack,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(pack.stat().st_mode) == 0o600
