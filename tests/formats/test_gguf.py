"""The GGUF reader: what it returns for sound files, and that every lie in a header is a named error."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.run.formats import QuantType, dequantize, open_gguf
from freehold.run.formats import gguf as reader
from tests.formats.gguf_writer import (
    ARCHITECTURE,
    ARRAY,
    FORMATS,
    SMALL_METADATA,
    SMALL_TENSORS,
    STRING,
    Entry,
    Value,
    gguf_bytes,
    random_data,
    write_gguf,
)

Q8 = Entry("w", QuantType.Q8_0, (32, 2))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "small.gguf", SMALL_METADATA, SMALL_TENSORS)


def refusal(path: Path, content: bytes) -> BadModelFile:
    """Open `content` as a file; return the error, which must name the file."""
    path.write_bytes(content)
    with pytest.raises(BadModelFile) as caught:
        open_gguf(path)
    assert str(path) in caught.value.message
    return caught.value


def test_tensors_have_row_major_shapes_and_their_own_bytes(small: Path) -> None:
    with open_gguf(small) as file:
        assert file.version == 3 and file.architecture == "llama" and file.paths == (small,)
        assert [t.shape for t in file.tensors.values()] == [(4, 64), (3, 256), (7,)]
        tensor = file.tensors["blk.0.attn_q.weight"]
        assert tensor.type is QuantType.Q4_K and tensor.nbytes == 3 * 144 and not tensor.raw.flags.writeable
        want = dequantize(tensor.raw.reshape(3, 144), QuantType.Q4_K, 256)
        assert np.array_equal(tensor.numpy(), want, equal_nan=True)


def test_reader_agrees_with_gguf_package(small: Path) -> None:
    ours, theirs = open_gguf(small), gguf.GGUFReader(small)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].raw.tobytes() == tensor.data.tobytes()
    for key in set(SMALL_METADATA) - {"nested"}:
        want = theirs.fields[key].contents()
        found = ours.metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == want, key


def test_reader_takes_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "qwen2")
    writer.add_uint32("qwen2.block_count", 24)
    writer.add_token_list(["a", "b"])
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("w", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "theirs.gguf") as file:
        assert file.architecture == "qwen2" and file.metadata.get_int("qwen2.block_count") == 24
        assert np.array_equal(file.tensors["w"].numpy(), weights)


def test_arrays_outlive_close(small: Path) -> None:
    file = open_gguf(small)
    raw = file.tensors["output_norm.weight"].raw
    before = raw.tobytes()
    file.close()
    assert not file.tensors and raw.tobytes() == before


def test_a_vocabulary_of_150k_tokens_opens_in_half_a_second(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(150_000)]
    metadata = ARCHITECTURE | {
        "tokens": Value(ARRAY, tokens, STRING),
        "scores": Value(ARRAY, [0.0] * 150_000, 6),
    }
    path = write_gguf(tmp_path / "vocab.gguf", metadata)
    start = time.process_time()
    file = open_gguf(path)
    assert time.process_time() - start < 0.5
    assert file.metadata.get_strings("tokens") == tokens and file.metadata["scores"].size == 150_000


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> Value:
    code = draw(st.sampled_from([*FORMATS, STRING] + [ARRAY] * (depth < 3)))
    if code == ARRAY:
        item = draw(st.sampled_from([*FORMATS, STRING] + [ARRAY] * (depth < 2)))
        if item == ARRAY:
            nested = draw(st.lists(values(depth=depth + 1).filter(lambda v: v.code == ARRAY), max_size=3))
            return Value(ARRAY, nested, ARRAY)
        return Value(ARRAY, draw(st.lists(scalars(item), max_size=5)), item)
    return Value(code, draw(scalars(code)))


def scalars(code: int) -> st.SearchStrategy:
    if code == STRING:
        return st.text(max_size=20)
    if code == 7:
        return st.booleans()
    if code in (6, 12):
        return st.floats(width=32 if code == 6 else 64, allow_nan=False)
    bits = 8 * struct.calcsize(FORMATS[code])
    signed = FORMATS[code].islower()
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


def plain(value: object) -> object:
    if isinstance(value, Value):
        return plain(value.value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None)
@given(metadata=st.dictionaries(st.text(min_size=1, max_size=20), values(), max_size=6))
def test_metadata_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Value]
) -> None:
    for checked in ("general.alignment", "split.count", "split.tensors.count"):  # their types are asserted
        metadata.pop(checked, None)
    path = write_gguf(tmp_path_factory.mktemp("meta") / "m.gguf", metadata)
    found = open_gguf(path).metadata
    assert {key: plain(value) for key, value in found.items()} == {k: plain(v) for k, v in metadata.items()}


def test_any_truncation_or_bit_flip_is_refused_or_opens_cleanly(tmp_path: Path) -> None:
    sound = gguf_bytes(SMALL_METADATA, SMALL_TENSORS)
    header = len(sound) - sum(-(-len(random_data(tensor)) // 32) * 32 for tensor in SMALL_TENSORS)
    random = np.random.default_rng(8)
    path, slowest = tmp_path / "damaged.gguf", 0.0
    for trial in range(500):
        damaged = bytearray(sound)
        if trial % 3 == 0:
            del damaged[int(random.integers(0, len(sound))) :]
        else:
            for _ in range(int(random.integers(1, 4))):
                damaged[int(random.integers(0, header))] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(damaged)
        start = time.process_time()
        try:
            with open_gguf(path) as file:
                for tensor in file.tensors.values():
                    tensor.numpy()
        except (BadModelFile, ModelNotFound) as error:
            assert str(path) in error.message
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 1


def test_every_truncation_of_the_header_is_refused(tmp_path: Path) -> None:
    sound = gguf_bytes(SMALL_METADATA, SMALL_TENSORS)
    for length in range(0, len(sound) - 32, 3):
        refusal(tmp_path / "short.gguf", sound[:length])


@pytest.mark.parametrize("field", ["tensor_count", "key_count"])
@pytest.mark.parametrize("count", [2**60, 2**63, 2**64 - 1, 1000])
def test_absurd_counts_fail_at_once(tmp_path: Path, field: str, count: int) -> None:
    start = time.process_time()
    error = refusal(tmp_path / "m.gguf", gguf_bytes(ARCHITECTURE, [Q8], **{field: count}))  # type: ignore[arg-type]
    assert f"{count:,}" in error.message and time.process_time() - start < 5


@pytest.mark.parametrize("item", [0, 4, STRING, ARRAY])
def test_absurd_array_lengths_fail_at_once(tmp_path: Path, item: int) -> None:
    array = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    error = refusal(tmp_path / "m.gguf", array + struct.pack("<IIQ", ARRAY, item, 2**61) + bytes(64))
    assert "2,305,843,009,213,693,952" in error.message


@pytest.mark.parametrize(
    "tensors, words",
    [
        ([Entry("w", 0, (2**32, 2**31), b"")], "2\\^63"),
        ([Entry("w", 0, (2**40,), b"")], "ends at byte"),
        ([Entry("w", 0, (4, 0), b"")], "zero"),
        ([Entry("w", 0, (), b"")], "0 dimensions"),
        ([Entry("w", 0, (1, 1, 1, 1, 1), b"")], "5 dimensions"),
        ([Entry("w", QuantType.Q8_0, (33,), b"")], "33"),
        ([Entry("w", 0, (4,), bytes(16), offset=16)], "multiple of 32"),
        ([Entry("w", 0, (4,), bytes(16), offset=2**63)], "ends at byte"),
        ([Q8, Q8], "twice"),
        ([Q8, Entry("v", QuantType.Q8_0, (32, 2), offset=32)], "overlap"),
        ([Entry("", 0, (4,))], "empty"),
        ([Entry("n" * 2000, 0, (4,))], "2,000"),
        ([Entry("w", 139, (256,), bytes(256))], "IQ4_K .*ik_llama"),
        ([Entry("w", 36, (256,), bytes(256))], "'w'.*I2_S"),
        ([Entry("w", 9, (32,), bytes(36))], "Q8_1"),
    ],
)
def test_bad_descriptors_are_refused(tmp_path: Path, tensors: list[Entry], words: str) -> None:
    error = refusal(tmp_path / "m.gguf", gguf_bytes(ARCHITECTURE, tensors))
    with pytest.raises(BadModelFile, match=words):
        raise error


DEEP = Value(ARRAY, [Value(ARRAY, [Value(ARRAY, [Value(ARRAY, [Value(ARRAY, [1], 4)], 9)], 9)], 9)], 9)


@pytest.mark.parametrize(
    "metadata, words",
    [
        ([("k", Value(4, 1)), ("k", Value(4, 2))], "'k' occurs twice"),
        ([("", Value(4, 1))], "empty"),
        ([("k", Value(STRING, b"\xff\xfe"))], "UTF-8"),
        ([("k", Value(ARRAY, [b"ok", b"\xff"], STRING))], "string 1 .*UTF-8"),
        ([("k" * 70_000, Value(4, 1))], "70,000"),
        ([("k", DEEP)], "deeper"),
        ([("k", Value(0, 2))], None),
        ([("general.alignment", Value(4, 48))], "48"),
        ([("general.alignment", Value(4, 0))], "power of two"),
        ([("general.alignment", Value(4, 1 << 30))], "power of two"),
        ([("general.alignment", Value(STRING, "32"))], "an integer"),
        ([("split.count", Value(2, 2))], "does not say which"),
        ([("split.count", Value(4, 1_000_000))], "1000000"),
    ],
)
def test_bad_metadata_is_refused(
    tmp_path: Path, metadata: list[tuple[str, Value]], words: str | None
) -> None:
    content = gguf_bytes(metadata)
    if words is None:  # a bool that is neither 0 nor 1
        content = content.replace(struct.pack("<IB", 0, 2), struct.pack("<IB", 7, 2))
        words = "bool value 2"
    with pytest.raises(BadModelFile, match=words):
        raise refusal(tmp_path / "m.gguf", content)


def test_unknown_value_types_are_refused(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    assert "13" in refusal(tmp_path / "m.gguf", head + struct.pack("<I", 13) + bytes(32)).message
    assert "13" in refusal(tmp_path / "m.gguf", head + struct.pack("<IIQ", 9, 13, 1) + bytes(32)).message


def test_array_items_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ARRAY_ITEMS", 10)
    arrays = {"a": Value(ARRAY, [0] * 6, 0), "b": Value(ARRAY, [0] * 6, 0)}
    assert "10 in all" in refusal(tmp_path / "m.gguf", gguf_bytes(arrays)).message


@pytest.mark.parametrize("version, words", [(1, "version 1"), (4, "version 4"), (0x03000000, "big-endian")])
def test_other_versions_and_byte_orders_are_named(tmp_path: Path, version: int, words: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", ARCHITECTURE, version=version)
    with pytest.raises(UnsupportedModel, match=words):
        open_gguf(path)


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [Q8], version=2)
    assert open_gguf(path).version == 2


def test_any_power_of_two_alignment_is_honoured(tmp_path: Path) -> None:
    for alignment in (1, 8, 64, 4096):
        metadata = {"general.alignment": Value(4, alignment)}
        path = write_gguf(tmp_path / "m.gguf", metadata, [Q8, Entry("v", 0, (3,))], alignment=alignment)
        assert open_gguf(path).tensors["v"].numpy().shape == (3,)


def write_shards(directory: Path, count: int = 3, total: int | None = None) -> list[Path]:
    paths = []
    for number in range(count):
        metadata = {"split.no": Value(2, number), "split.count": Value(2, count)} | (
            ARCHITECTURE if number == 0 else {}
        )
        metadata["split.tensors.count"] = Value(5, count if total is None else total)
        path = directory / f"model-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write_gguf(path, metadata, [Entry(f"w{number}", QuantType.Q8_0, (32, number + 1))]))
    return paths


def test_opening_any_shard_opens_all(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    for path in paths:
        with open_gguf(path) as file:
            assert list(file.tensors) == ["w0", "w1", "w2"] and file.paths == tuple(paths)
            assert file.architecture == "llama" and file.tensors["w2"].shape == (3, 32)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelNotFound, match=r"model-00002-of-00003\.gguf"):
        open_gguf(paths[0])


def test_mixed_shards_are_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(BadModelFile, match="shard 2 of 3"):
        open_gguf(paths[0])


def test_a_wrong_tensor_total_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="4 tensors are announced"):
        open_gguf(write_shards(tmp_path, total=4)[0])


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        metadata = {"split.no": Value(2, number), "split.count": Value(2, 2)}
        write_gguf(tmp_path / f"m-{number + 1:05}-of-00002.gguf", metadata, [Q8])
    with pytest.raises(BadModelFile, match="'w' occurs twice"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")
