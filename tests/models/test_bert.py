"""An encoder computes what transformers computed, alone and beside others; what it is not is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, ContextOverflow, EngineClosed, UnsupportedModel, UsageError
from freehold.run.engine import Encoder
from freehold.run.models.load import load_model, pooling_from_dir
from freehold.run.models.oracle.session import Oracle
from tests.vectors.encoders import ENCODERS, LENGTHS, sequences, write_encoder

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden"
BOUND = 2e-3  # of activations of standard deviation 1: int16 codes, and sums in another order


def golden(name: str) -> list[np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return np.split(data["hidden"], np.cumsum(LENGTHS)[:-1])


def unit(rows: np.ndarray) -> np.ndarray:
    mean = rows.mean(axis=0, dtype=np.float64)
    return mean / np.sqrt(mean @ mean)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(folder: Path):
    with Encoder(load_model(folder, threads=2, tokens=256)) as made:
        yield made


@pytest.mark.parametrize("name", ENCODERS)
def test_oracle_computes_the_golden_activations(name: str, tmp_path: Path):
    oracle = Oracle(write_encoder(name, tmp_path))
    for ids, want in zip(sequences(name), golden(name), strict=True):
        assert np.abs(oracle.hidden(ids.tolist()) - want).max() <= 1e-4


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_computes_the_golden_embeddings(name: str, dtype: str, tmp_path: Path):
    model = load_model(write_encoder(name, tmp_path, dtype=dtype), threads=2, tokens=256)
    assert {m.weight_type for m in model.matrices.values()} == ({"I16", dtype} if name == "bert" else {dtype})
    texts = [ids.tolist() for ids in sequences(name)]
    with Encoder(model) as encoder:
        for pooling, pool in (
            ("mean", unit),
            ("cls", lambda r: unit(r[:1])),
            ("last", lambda r: unit(r[-1:])),
        ):
            got = encoder.embed(texts, pooling)
            want = np.stack([pool(rows) for rows in golden(name)])
            assert (1 - (got.astype(np.float64) * want).sum(1)).max() <= BOUND**2


def test_a_vector_is_the_same_bits_whatever_shares_its_step(encoder: Encoder):
    texts = [ids.tolist() for ids in sequences("bert")]
    together = encoder.embed(texts * 12)  # more rows than a step has
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert together.tobytes() == np.tile(alone, (12, 1)).tobytes()
    backwards = encoder.embed(texts[::-1])[::-1]
    assert np.ascontiguousarray(backwards).tobytes() == alone.tobytes()


def test_one_thread_gives_the_bits_of_two(folder: Path, encoder: Encoder):
    texts = [ids.tolist() for ids in sequences("bert")]
    with Encoder(load_model(folder, threads=1, tokens=256)) as other:
        assert other.embed(texts).tobytes() == encoder.embed(texts).tobytes()


def test_a_batch_lets_interactive_texts_go_first_and_home_at_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    """The batch's thread computes every step; what another thread's step needs is only to be taken home."""
    begun, asked, home = threading.Event(), threading.Event(), threading.Event()
    steps: list[set[int]] = []
    compute = encoder._computed

    def computed(batch, rows):
        steps.append({text.ids[0] for text in batch})
        begun.set()
        assert asked.wait(60) and (len(steps) < 3 or home.wait(60))
        return compute(batch, rows)

    monkeypatch.setattr(encoder, "_computed", computed)
    batch = threading.Thread(target=encoder.embed, args=([[5] * 60] * 40, "mean", "batch"))
    batch.start()
    assert begun.wait(60)

    def ask() -> None:
        encoder.embed([[6]])
        home.set()

    interactive = threading.Thread(target=ask)
    interactive.start()
    while not encoder._queues["interactive"]:
        pass
    asked.set()
    interactive.join(60)
    batch.join(60)
    assert steps[0] == {5} and steps[1] == {6} and len(steps) > 3 and home.is_set()


def test_texts_that_do_not_fit_are_named(encoder: Encoder):
    with pytest.raises(ContextOverflow, match=r"text 1 has 65 tokens; .* encodes 1 to 64"):
        encoder.embed([[5], [5] * 65])
    with pytest.raises(ContextOverflow, match="text 0 has 0 tokens"):
        encoder.embed([[]])
    with pytest.raises(UsageError, match="256 is not a token"):
        encoder.embed([[256]])
    with pytest.raises(UsageError, match="pooling is 'max'"):
        encoder.embed([[5]], "max")  # type: ignore[arg-type]


def test_a_context_may_be_shortened_and_not_stretched(folder: Path):
    model = load_model(folder, threads=1, tokens=256)
    with Encoder(model, context=8) as short, pytest.raises(ContextOverflow, match="encodes 1 to 8"):
        short.embed([[5] * 9])
    with pytest.raises(ContextOverflow, match="context is 65 tokens"):
        Encoder(model, context=65)


def test_a_closed_encoder_refuses(folder: Path):
    made = Encoder(load_model(folder, threads=1, tokens=256))
    made.close()
    with pytest.raises(EngineClosed):
        made.embed([[5]])


def test_counters_tell_what_was_read(folder: Path):
    with Encoder(load_model(folder, threads=1, tokens=256)) as encoder:
        encoder.embed([[5] * 10, [6] * 3])
        stats = encoder.stats()
    assert (stats.steps, stats.batched_tokens, stats.prompt_tokens, stats.generated_tokens) == (1, 13, 13, 0)


def changed(folder: Path, file: str, **fields: object) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 16}, "heads"),
        ({"max_position_embeddings": 65}, "position_embeddings"),
    ],
)
def test_another_berts_config_is_refused(tmp_path: Path, fields: dict[str, object], part: str):
    write_encoder("bert", tmp_path)
    with pytest.raises((UnsupportedModel, BadModelFile), match=part):
        load_model(changed(tmp_path, "config.json", **fields), threads=1, tokens=256)


def test_the_pooler_is_left_out_and_said(folder: Path):
    assert load_model(folder, threads=1, tokens=256).notes == (
        "the pooler is left out, because embeddings do not use it",
    )


def test_pooling_is_the_folders_own(tmp_path: Path):
    assert pooling_from_dir(write_encoder("bert", tmp_path, pooling="cls"), "mean") == "cls"
    assert pooling_from_dir(write_encoder("bert", tmp_path), "last") == "mean"
    changed(tmp_path, "1_Pooling/config.json", pooling_mode_max_tokens=True)
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens"):
        pooling_from_dir(tmp_path, "mean")
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModel, match="type 'Dense'"):
        pooling_from_dir(tmp_path, "mean")
    modules = [{"path": "../elsewhere", "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadModelFile, match="outside its folder"):
        pooling_from_dir(tmp_path, "mean")
