"""The writer's files are those that our reader and the `gguf` package read, also after an interruption."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import CapacityExceeded, StoreError, UsageError
from freehold.run.formats import QuantType, open_gguf
from freehold.run.formats.gguf_writer import (
    GGUFWriter,
    TensorPlan,
    Value,
    copied_keys,
    gguf_header,
    gguf_size,
    write_gguf,
)

KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "general.file_type": 7,
    "llama.rope.freq_base": 1e4,
    "freehold.flag": True,
    "freehold.negative": -3,
    "freehold.large": 1 << 40,
    "tokenizer.ggml.tokens": ["a", "b\u00e9", ""],
    "tokenizer.ggml.scores": np.array([0.5, -1.0], np.float32),
    "freehold.ids": [1, 2, -1],
    "freehold.none": [],
    "freehold.shorts": np.array([1, 2], np.int16),
}
PLANS = [
    TensorPlan("token_embd.weight", QuantType.Q8_0, (5, 64)),
    TensorPlan("output_norm.weight", QuantType.F32, (3,)),
    TensorPlan("blk.0.ffn_up_exps.weight", QuantType.F16, (2, 3, 4)),
]


def data(plans: list[TensorPlan] = PLANS) -> list[bytes]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 100, plan.nbytes, np.uint8).tobytes() for plan in plans]


def write(path: Path) -> Path:
    return write_gguf(path, KEYS, PLANS, data())


def test_file_reads_back_with_types_values_and_bytes(tmp_path: Path):
    with open_gguf(write(tmp_path / "m.gguf")) as read:
        assert {k: np.asarray(v).tolist() for k, v in read.metadata.items()} == {
            k: np.asarray(v).tolist() for k, v in KEYS.items()
        }
        assert read.metadata["freehold.shorts"].dtype == np.int16
        for plan, raw in zip(PLANS, data(), strict=True):
            tensor = read.tensors[plan.name]
            assert (tensor.type, tensor.shape, tensor.raw.tobytes()) == (plan.type, plan.shape, raw)


def test_the_gguf_package_reads_the_same(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf"))
    assert [t.name for t in reader.tensors] == [p.name for p in PLANS]
    assert [bytes(t.data.tobytes()) for t in reader.tensors] == data()
    assert [tuple(int(d) for d in t.shape) for t in reader.tensors] == [p.shape[::-1] for p in PLANS]
    assert reader.fields["tokenizer.ggml.tokens"].contents() == KEYS["tokenizer.ggml.tokens"]
    assert reader.fields["freehold.large"].contents() == 1 << 40
    assert reader.fields["freehold.negative"].contents() == -3


def test_size_is_known_before_anything_is_written(tmp_path: Path):
    assert write(tmp_path / "m.gguf").stat().st_size == gguf_size(KEYS, PLANS)


def test_copied_keys_keep_their_types_and_leave_out_the_layout(tmp_path: Path):
    odd: dict[str, Value] = {
        "general.alignment": 32,
        "split.no": 0,
        "freehold.bytes": np.array([1, 255], np.uint8),
        "freehold.wide": np.array([1.5]),
    }
    write_gguf(tmp_path / "a.gguf", KEYS | odd, PLANS, data())
    with open_gguf(tmp_path / "a.gguf") as source:
        write_gguf(tmp_path / "b.gguf", copied_keys(source), PLANS, data())
    kept = {k: v for k, v in (KEYS | odd).items() if not k.startswith(("general.alignment", "split."))}
    assert (tmp_path / "b.gguf").read_bytes()[: len(gguf_header(kept, PLANS))] == gguf_header(kept, PLANS)


def test_pieces_of_a_tensor_join(tmp_path: Path):
    pieces = [half for raw in data() for half in (raw[: len(raw) // 3], raw[len(raw) // 3 :])]
    write_gguf(tmp_path / "b.gguf", KEYS, PLANS, pieces)
    assert (tmp_path / "b.gguf").read_bytes() == write(tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("whole", [1, 2, 3])
def test_an_interrupted_file_continues_to_the_same_bytes(tmp_path: Path, whole: int):
    path = tmp_path / "part"
    with GGUFWriter(path, KEYS, PLANS) as writer:
        for raw in data()[:whole]:
            writer.write(raw)
        assert writer.sync() == whole
        if whole < len(PLANS):
            writer.write(b"torn")
    with GGUFWriter(path, KEYS, PLANS, whole) as writer:
        for raw in data()[whole:]:
            writer.write(raw)
        writer.finish()
    assert path.read_bytes() == write(tmp_path / "m.gguf").read_bytes()


def test_another_file_is_not_continued(tmp_path: Path):
    with GGUFWriter(tmp_path / "part", KEYS, PLANS) as writer:
        writer.write(data()[0])
    with pytest.raises(UsageError, match="cannot be continued"):
        GGUFWriter(tmp_path / "part", KEYS | {"general.name": "other"}, PLANS, 1)
    with pytest.raises(UsageError, match="cannot be continued"):
        GGUFWriter(tmp_path / "part", KEYS, PLANS, 2)


def test_a_file_that_fails_midway_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def broken():
        yield data()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, KEYS, PLANS, broken())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.gguf"]


def test_full_disk_is_one_line(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="file sizes are limited by POSIX alone")
    plan = [TensorPlan("w", QuantType.Q8_0, (64, 1024))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CapacityExceeded, match=r"the disk of .* is full") as told:
            write_gguf(tmp_path / "m.gguf", KEYS, plan, data(plan))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in told.value.message and os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_gguf(tmp_path / "no" / "m.gguf", KEYS, PLANS, data())
