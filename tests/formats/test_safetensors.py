"""The safetensors reader against the safetensors package's writer, and against lying headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.run.formats import QuantType, open_safetensors
from freehold.run.formats.safetensors import side_json

ARRAYS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.arange(4, dtype=np.float16),
    "f64": np.array([[1.5]]),
    "i64": np.array([1, -2, 3]),
    "i8": np.array([-128, 127], np.int8),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
}


def file_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_model(
    directory: Path, shards: dict[str, dict[str, np.ndarray]], extra: dict[str, str] | None = None
) -> Path:
    places = {}
    for name, arrays in shards.items():
        save_file(arrays, directory / name)
        places |= dict.fromkeys(arrays, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places | (extra or {})}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_reader_takes_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "np"})
    with open_safetensors(tmp_path / "m.safetensors") as file:
        assert set(file.tensors) == set(ARRAYS)
        for name, array in ARRAYS.items():
            tensor = file.tensors[name]
            assert tensor.shape == array.shape and tensor.raw.tobytes() == array.tobytes()
            assert np.array_equal(tensor.numpy(), array.astype(np.float32))


def test_bf16_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"w": entry([2], 0, 4, "BF16")}, bytes([0x80, 0x3F, 0x00, 0xC0])))
    tensor = open_safetensors(path).tensors["w"]
    assert tensor.type is QuantType.BF16 and tensor.numpy().tolist() == [1.0, -2.0]


def test_a_directory_shows_its_side_files(tmp_path: Path) -> None:
    save_file({"w": ARRAYS["f32"]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "limit": [0.0, Infinity]}'
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    file = open_safetensors(tmp_path)
    assert file.config.get_str("model_type") == "llama" and file.config.get_int("num_hidden_layers") == 2
    assert file.tokenizer_json == tmp_path / "tokenizer.json"
    assert not file.generation_config and file.tokenizer_config is None and file.chat_template is None


def test_an_index_gathers_its_shards(tmp_path: Path) -> None:
    write_model(tmp_path, {"a-1.safetensors": {"x": ARRAYS["f32"]}, "a-2.safetensors": {"y": ARRAYS["f16"]}})
    file = open_safetensors(tmp_path)
    assert set(file.tensors) == {"x", "y"} and [p.name for p in file.paths] == [
        "a-1.safetensors",
        "a-2.safetensors",
    ]


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/a.safetensors", "..\\a.safetensors", "c:a.safetensors", "..", ""]
)
def test_shards_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, {"a.safetensors": {"x": ARRAYS["f32"]}}, {"y": name})
    with pytest.raises(BadModelFile, match="own directory"):
        open_safetensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, {"a.safetensors": {"x": ARRAYS["f32"]}}, {"y": "b.safetensors"})
    with pytest.raises(ModelNotFound, match=r"b\.safetensors"):
        open_safetensors(tmp_path)


def test_an_index_that_disagrees_with_its_shard_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, {"a.safetensors": {"x": ARRAYS["f32"]}}, {"y": "a.safetensors"})
    with pytest.raises(BadModelFile, match="'y'"):
        open_safetensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        {"a.safetensors": {"x": ARRAYS["f32"]}, "b.safetensors": {"x": ARRAYS["f32"], "y": ARRAYS["f16"]}},
        {"z": "a.safetensors"},
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {"x": "a.safetensors", "y": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelFile, match="another shard"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "content, words",
    [
        (file_bytes({"w": entry([2], 0, 8)}, bytes(4)), "8 bytes"),
        (file_bytes({"w": entry([2], 0, 8)}, bytes(12)), "12"),
        (file_bytes({"w": entry([3], 0, 8)}, bytes(8)), "needs 12"),
        (file_bytes({"w": entry([2**40, 2**40], 0, 8)}, bytes(8)), "needs"),
        (file_bytes({"w": entry([-2], 0, 8)}, bytes(8)), "shape"),
        (file_bytes({"w": entry([1] * 9, 0, 4)}, bytes(4)), "shape"),
        (file_bytes({"w": entry([True], 0, 4)}, bytes(4)), "shape"),
        (file_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, bytes(4)), "data_offsets"),
        (file_bytes({"w": entry([1], 4, 8)}, bytes(8)), "not at 0"),
        (file_bytes({"v": entry([2], 0, 8), "w": entry([1], 4, 8)}, bytes(8)), "not at 8"),
        (file_bytes({"w": 3}), "no object"),
        (file_bytes({"": entry([1], 0, 4)}, bytes(4)), "no name"),
        (file_bytes(b'{"w": 1, "w": 2}'), "twice"),
        (file_bytes(b'{"w": '), "JSON"),
        (file_bytes(b'{"w": ' + b"[" * 200_000), "JSON"),
        (file_bytes(b'{"\xff": 1}'), "JSON"),
        ((90_000_000).to_bytes(8, "little") + b"{}", "90,000,008"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadModelFile, match=words) as caught:
        open_safetensors(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("dtype", ["F8_E5M2", "BOOL", "U16", "Q9"])
def test_number_types_we_do_not_read_are_named(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(file_bytes({"w": entry([4], 0, 4, dtype)}, bytes(4)))
    with pytest.raises(UnsupportedModel, match=f"'w'.*{dtype}"):
        open_safetensors(tmp_path / "m.safetensors")


def test_damaged_headers_never_raise_anything_else(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors")
    sound, random = (tmp_path / "m.safetensors").read_bytes(), np.random.default_rng(3)
    header = 8 + int.from_bytes(sound[:8], "little")
    for trial in range(300):
        damaged = bytearray(sound)
        if trial % 3 == 0:
            del damaged[int(random.integers(0, len(sound))) :]
        else:
            damaged[int(random.integers(0, header))] ^= 1 << int(random.integers(0, 8))
        (tmp_path / "m.safetensors").write_bytes(damaged)
        try:
            with open_safetensors(tmp_path / "m.safetensors") as file:
                for tensor in file.tensors.values():
                    tensor.numpy()
        except BadModelFile as error:
            assert "m.safetensors" in error.message


@pytest.mark.parametrize(
    "name, words", [("a.gguf", "GGUF"), ("pytorch_model.bin", "pickled"), ("readme.md", "neither")]
)
def test_a_directory_without_weights_says_what_it_holds(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(BadModelFile, match=words):
        open_safetensors(tmp_path)


def test_a_config_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    save_file({"w": ARRAYS["f32"]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(" " * (17 << 20))
    with pytest.raises(BadModelFile, match=r"config\.json has 17,825,792 bytes"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("written", ["Infinity", '{"__float__": "Infinity"}'])
def test_an_infinity_in_config_is_a_number_however_it_is_written(written: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(f'{{"limits": [0.0, {written}]}}')
    assert side_json(tmp_path / "config.json")["limits"] == [0.0, float("inf")]
