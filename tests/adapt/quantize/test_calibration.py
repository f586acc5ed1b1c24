"""Calibration: the streams make what the model makes, moments are of what matrices multiply, and replaced
weights count from there on.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from freehold.adapt.quantize.calibration import (
    LayerStreams,
    Moments,
    RecordingOps,
    block_width,
    calibrate,
)
from freehold.base.errors import StoreError, UsageError
from freehold.run.formats import open_model_file
from freehold.run.models.binding.bind import Source, read_source
from freehold.run.models.oracle.session import NumpyOps, Oracle
from tests.models.golden import golden, write_model


def source_of(family: str, folder: Path) -> tuple[Source, list[int]]:
    path, (ids, _) = write_model(family, "gguf", folder), golden(family)
    return read_source(open_model_file(path)), list(ids)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mixtral"])
def test_streams_end_in_the_oracles_logits(family, tmp_path):
    source, ids = source_of(family, tmp_path)
    streams = LayerStreams(source, [ids, ids[:5]], tmp_path / "spool")
    for layer in range(len(source.network.layers)):
        streams.run(layer)
    oracle = Oracle(open_model_file(source.path))
    for text, found in zip([ids, ids[:5]], streams.logits(), strict=True):
        assert np.abs(found - oracle.logits(text)).max() < 1e-4
    streams.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room")
def test_a_full_disk_is_one_line_with_a_way_out(tmp_path):
    source, ids = source_of("llama", tmp_path)
    with pytest.raises(StoreError, match="No space left") as told:
        LayerStreams(source, [ids], Path("/dev/full"))
    assert "continues" in told.value.hint


def test_streams_that_do_not_fit_leave_no_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise StoreError("full")

    source, ids = source_of("llama", tmp_path)
    monkeypatch.setattr(LayerStreams, "_write", full)
    with pytest.raises(StoreError):
        next(calibrate(source, [ids], tmp_path / "spool"))
    assert not (tmp_path / "spool").exists()


def test_moments_are_those_of_the_inputs_and_shared_where_the_input_is(tmp_path):
    source, ids = source_of("llama", tmp_path)
    seen: dict[str, list[np.ndarray]] = {}
    streams = LayerStreams(source, [ids, ids[:7]], tmp_path / "one")

    def note(names: tuple[str, ...], x: np.ndarray) -> None:
        for name in names:
            seen.setdefault(name, []).append(x.copy())

    streams.run(0, [note, note])
    streams.close()
    layer = next(calibrate(source, [ids, ids[:7]], tmp_path / "two"))
    assert set(layer.names) == set(seen) and len(layer.names) == 7
    for name, rows in seen.items():
        x = np.concatenate(rows)
        (h,) = layer.moments[name].means()
        assert np.allclose(h, x.T @ x / len(x), atol=1e-5)
    assert layer.moments["blk.0.attn_q.weight"] is layer.moments["blk.0.attn_v.weight"]
    assert layer.moments["blk.0.attn_q.weight"] is not layer.moments["blk.0.ffn_up.weight"]


def test_an_error_counts_by_the_stream_that_it_is_added_to(tmp_path):
    """A token whose stream is a thousand times the others' would else decide alone."""
    source, ids = source_of("llama", tmp_path)
    streams = LayerStreams(source, [ids], tmp_path / "spool")
    whole = next(calibrate(source, [ids], tmp_path / "other")).moments["blk.0.attn_output.weight"].means()[0]
    embedding = streams._read(0)
    streams._write(0, embedding * np.float32(1000), streams._file)
    seen: dict[str, np.ndarray] = {}
    streams.run(0, [lambda names, x: seen.update(dict.fromkeys(names, x))])
    streams.close()
    x = seen["blk.0.attn_output.weight"]
    assert np.trace(x.T @ x / len(x)) < 1e-4 * np.trace(whole)


def test_a_third_of_the_texts_gives_moments_of_its_own(tmp_path):
    source, ids = source_of("llama", tmp_path)
    parts = next(calibrate(source, [ids, ids[::-1]], tmp_path / "spool", held=[False, True]))
    alone = next(calibrate(source, [ids[::-1]], tmp_path / "spool"))
    for name in parts.names:
        assert np.array_equal(parts.held[name].means()[0], alone.moments[name].means()[0])


def test_later_layers_see_replaced_weights_only_when_they_follow(tmp_path):
    source, ids = source_of("llama", tmp_path)

    def second(follow: bool) -> np.ndarray:
        for layer in calibrate(source, [ids], tmp_path / "spool", follow=follow):
            if layer.number == 1:
                return layer.moments["blk.1.attn_q.weight"].means()[0]
            for name in layer.names:
                layer.replace(name, layer.weights(name) * np.float32(0.5))
        raise AssertionError

    assert not np.allclose(second(True), second(False), rtol=1e-3)
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(("columns", "width"), [(896, 896), (4864, 2432), (8960, 2304), (5000, 2560)])
def test_wide_inputs_get_blocks_of_a_multiple_of_128(columns, width):
    assert block_width(columns) == width
    blocks = Moments.of_width(columns).blocks if columns < 1000 else []
    assert [len(h) for h in blocks] == ([columns] if blocks else [])


def test_a_model_that_reads_more_than_the_stream_is_refused(tmp_path):
    source, ids = source_of("gemma3n", tmp_path)
    with pytest.raises(UsageError, match="more than the stream"):
        LayerStreams(source, [ids], tmp_path / "spool")


def test_rough_moments_differ_by_the_rounding_of_bfloat16_alone(tmp_path):
    source, ids = source_of("llama", tmp_path)
    texts = [ids, ids[:7]]
    exact = next(calibrate(source, texts, tmp_path / "one"))
    rough = next(calibrate(source, texts, tmp_path / "two", rough=True, threads=2))
    again = next(calibrate(source, texts, tmp_path / "three", rough=True))
    for name in exact.names:
        (h,), (r,), (a,) = (each.moments[name].means() for each in (exact, rough, again))
        assert np.array_equal(r, r.T) and np.array_equal(r, a)
        assert np.linalg.norm(r - h) < 0.02 * np.linalg.norm(h)


def test_recording_takes_what_the_oracle_takes():
    """A part that passes a new argument of an op to both would end every calibration otherwise."""
    own = [name for name, each in vars(RecordingOps).items() if inspect.isfunction(each) and name[0] != "_"]
    assert "gated" in own
    for name in own:
        mine, base = (inspect.signature(getattr(kind, name)) for kind in (RecordingOps, NumpyOps))
        assert list(mine.parameters) == list(base.parameters), name
