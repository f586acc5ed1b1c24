"""Tiny models that see on disk, their pictures and prompts, and both our ways to compute logits of these; no test.

Path: test_tower_golden.py (towers that read blocks), test_eyes_golden.py and the tests of single towers -> Shown,
native_logits, oracle_logits; of the latter ones -> EyesOnDisk
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from PIL import Image as Pillow

from freehold import Image, Message
from freehold import _native as native
from freehold.run.formats import QuantType
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle, PictureRows
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.packing.packer import Rounding
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import PicturePlan
from freehold.run.pictures.opening import open_picture
from tests.models.golden import GOLDEN
from tests.vectors.eyes import (
    CLEAR,
    EYES,
    Chat,
    Eyes,
    joining_keys,
    lines_join,
    opengvlab_config,
    opengvlab_tensors,
)

F32 = np.ndarray
Golden = dict[str, np.ndarray]
Picture = tuple[PicturePlan, list[np.ndarray]]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """How far arrays are apart at most, in standard deviations of what is wanted."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


def cosines(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the cosine of each row with the one that is wanted."""
    products = (got.astype(np.float64) * want).sum(axis=1)
    return products / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)


def png(pixels: np.ndarray) -> bytes:
    """Write a picture."""
    data = io.BytesIO()
    Pillow.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@cache
def golden(name: str) -> Golden:
    """Read a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


# --- a prompt with pictures ---------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A prompt with its pictures' rows, as a step takes them; `after`: the place of the token that follows."""

    ids: list[int]
    rows: np.ndarray  # of features, -1 for a word
    features: F32 | None
    places: np.ndarray | None  # of a model that turns by three numbers
    ends: np.ndarray | None  # of a model whose rows of a picture see each other
    after: int

    def longer(self, tokens: Sequence[int]) -> Shown:
        """Return the prompt with an answer's tokens after it."""
        count = len(tokens)
        places = np.repeat(np.arange(self.after, self.after + count, dtype=np.int32)[:, None], 3, axis=1)
        ends = np.arange(len(self.ids) + 1, len(self.ids) + count + 1, dtype=np.int32)
        return Shown(
            [*self.ids, *tokens],
            np.concatenate([self.rows, np.full(count, -1, np.int32)]),
            self.features,
            None if self.places is None else np.concatenate([self.places, places]),
            None if self.ends is None else np.concatenate([self.ends, ends]),
            self.after + count,
        )

    def part(self, first: int, end: int) -> dict[str, Any]:
        """Return what a step of these rows has of pictures."""
        if self.features is None:
            return {}
        out = {"features": self.features, "feature_rows": self.rows[first:end]}
        for key, value in (("places", self.places), ("ends", self.ends)):
            out |= {} if value is None else {key: value[first:end]}
        return out

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where rows of pictures are."""
        marked = np.concatenate([[False], self.rows >= 0, [False]])
        edges = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2)
        return tuple((int(first), int(end)) for first, end in edges)

    @property
    def pieces(self) -> list[int]:
        """Divide it into a prefill, which ends inside a picture if rows do not see each other, and single steps."""
        if self.features is None:
            first = len(self.ids) // 2
        else:
            first = self.spans[0][0] + 2 if self.ends is None else self.spans[-1][1]
        return [first, *[1] * (len(self.ids) - first)]


def lay_out(
    ids: Sequence[int], mark: int, plans: Sequence[PicturePlan], features: Sequence[F32], *, both: bool
) -> Shown:
    """Give rows of pictures to the tokens that stand for them; `both`: those of a picture see each other."""
    marked = np.asarray(ids) == mark
    assert marked.sum() == sum(plan.tokens for plan in plans)
    rows = np.where(marked, np.cumsum(marked) - 1, -1).astype(np.int32)
    ends = np.arange(1, len(ids) + 1, dtype=np.int32)
    for t in np.flatnonzero(marked)[::-1]:
        ends[t] = max(ends[t], ends[t + 1] if marked[t + 1 :][:1].any() else 0)
    places, turn, waiting, t = np.zeros((len(ids), 3), np.int32), 0, iter(plans), 0
    threes = any(plan.places is not None for plan in plans)
    while t < len(ids):
        plan = next(waiting) if marked[t] and threes else None
        if plan is None:
            places[t], t, turn = turn, t + 1, turn + 1
            continue
        assert plan.places is not None
        places[t : t + plan.tokens] = plan.places + turn
        t, turn = t + plan.tokens, turn + plan.advance
    return Shown(
        list(ids),
        rows,
        np.concatenate(features) if features else None,
        places if threes else None,
        ends if both else None,
        turn,
    )


class NativeRun:
    """A sequence that grows in a plan."""

    def __init__(self, model: LoadedModel, most: int, context: int) -> None:
        blocks = -(-context // native.BLOCK_TOKENS)
        self._recurrent = any(spec.conv or spec.state for spec in model.layers)
        cache = model.new_cache(blocks, "f32", slots=1 if self._recurrent else 0)
        self._plan = model.build(cache, most)
        self._table = np.arange(blocks, dtype=np.int32)[None]
        self._length = 0

    def step(self, ids: Sequence[int], **pictures: Any) -> F32:
        """Compute the next tokens; return the logits after each."""
        first, count = self._length, len(ids)
        rows = np.arange(count, dtype=np.int32)
        options = dict(pictures)
        if self._recurrent:
            state = [0, first, first + count, 0 if first else -1, 0]
            options["pieces"] = np.array([state], np.int32)
        self._length += count
        tokens, seqs = np.array(ids, np.int32), np.zeros(count, np.int32)
        return self._plan.run(tokens, rows + first, seqs, self._table, rows, **options)[0]


def native_logits(model: LoadedModel, prompt: Shown, chunks: Sequence[int]) -> F32:
    """Run the model's plan over a prompt in pieces of the given sizes."""
    run, out, first = NativeRun(model, max(chunks), len(prompt.ids)), [], 0
    for count in chunks:
        out.append(run.step(prompt.ids[first : first + count], **prompt.part(first, first + count)))
        first += count
    return np.concatenate(out)


def oracle_logits(oracle: Oracle, prompt: Shown, chunks: Sequence[int]) -> F32:
    """Run the oracle over a prompt in pieces of the given sizes."""
    session, out, first = oracle.session(len(prompt.ids)), [], 0
    for count in chunks:
        pictures = PictureRows(**prompt.part(first, first + count))
        out.append(session.step(prompt.ids[first : first + count], pictures))
        first += count
    return np.concatenate(out)


def check_greedy(model: LoadedModel, prompt: Shown, want: Sequence[int]) -> None:
    """Compute an answer token by token, and compare each with the one that is wanted."""
    first = len(prompt.ids)
    run = NativeRun(model, first, first + len(want))
    logits = run.step(prompt.ids, **prompt.part(0, first))[-1]
    for t, token in enumerate(want):
        assert int(logits.argmax()) == token, t
        prompt = prompt.longer([token])
        logits = run.step([token], **prompt.part(first + t, first + t + 1))[-1]


# --- files of the models of tests/vectors/eyes.py ----------------------------------------------------------


class Files(NamedTuple):
    """Where a model's text half and its tower are; of a folder of safetensors it is the same."""

    text: Path
    tower: Path


Stored = tuple[dict[str, Any], dict[str, np.ndarray]]  # keys and tensors of a GGUF


def _same(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    return keys, tensors


def _swapped(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    """Call an MLP's matrices as the first converters did."""
    turned = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}

    def name(own: str) -> str:
        kind = own.split(".")[-2] if "." in own else ""
        return own.replace(kind, turned[kind]) if kind in turned else own

    return keys, {name(key): value for key, value in tensors.items()}


def _with_break(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    """Add the copy of the text model's row for a mark, which is not read."""
    return keys, tensors | {"v.token_embd.img_break": np.zeros(64, np.float32)}


def _of_mistral(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    """State the MLP's width for that of features."""
    return keys | {"clip.vision.projection_dim": 96, "clip.rope.freq_base": 10000.0}, tensors


def _post_norm(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Stored:
    """Call an MLP's norm as the converter does since Gemma 4."""
    return keys, {name.replace(".ln2.", ".attn_post_norm."): value for name, value in tensors.items()}


# How a tower's GGUF is written, by the name of the form.
GGUF_FORMS: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Stored]] = {
    "gguf": _same,
    "swapped": _swapped,
    "break": _with_break,
    "mistral": _of_mistral,
    "post": _post_norm,
}


def write(name: str, form: str, folder: Path) -> Files:
    """Write a model of EYES in one of its forms: `hub` has the names of published files, in BF16."""
    tiny, eyes = make.config(name), EYES[name]
    if form in ("safetensors", "hub", "chat"):
        path = make.write_safetensors(tiny, folder / "model")
        if form == "chat":
            data = make.safetensors_bytes(opengvlab_tensors(tiny), "F32")
            (path / "model.safetensors").write_bytes(data)
            (path / "config.json").write_text(json.dumps(opengvlab_config(tiny)), encoding="utf-8")
            (path / "preprocessor_config.json").write_text('{"size": 24, "crop_size": 24, "resample": 3}')
        if form == "hub":
            _as_published(tiny, eyes, path)
        if eyes.lines_join:
            lines_join(path)
        return Files(path, path)
    keys = joining_keys(tiny) if eyes.lines_join else {}
    keys_of_tower, tensors = GGUF_FORMS[form](dict(tiny.mmproj), make.mmproj_tensors(tiny))
    text = make.write_gguf(tiny, folder / "model.gguf", keys=keys)
    return Files(text, write_mmproj(keys_of_tower, tensors, folder / "mmproj-model.gguf"))


def write_mmproj(keys: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> Path:
    """Write a GGUF of a tower."""
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    path.write_bytes(make.gguf_bytes(keys | {"general.name": "tiny"}, stored))
    return path


def _as_published(tiny: make.TinyConfig, eyes: Eyes, folder: Path) -> None:
    """Write the older names, in BF16, and the image processor's settings inside the processor's."""
    data = make.safetensors_bytes(eyes.hub_tensors(tiny), "BF16")
    (folder / "model.safetensors").write_bytes(data)
    config, pixels = eyes.hub_settings(tiny)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "preprocessor_config.json").unlink()
    if pixels is tiny.preprocessor:
        settings = {"image_processor": pixels, "patch_size": 14, "spatial_merge_size": 2}
        (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")


@dataclass(repr=False)
class EyesOnDisk:
    """A model of EYES with its tower, and what is compared with it."""

    name: str
    form: str
    files: Files

    @classmethod
    def written(cls, name: str, form: str, folder: Path) -> EyesOnDisk:
        """Write the model."""
        return cls(name, form, write(name, form, folder))

    @property
    def golden(self) -> Golden:
        """What transformers computed."""
        return golden(self.name)

    @cached_property
    def text(self) -> LoadedModel:
        """The text half."""
        return load_model(self.files.text, threads=1)

    @cached_property
    def tower(self) -> LoadedTower:
        """The tower, its matrices as they are."""
        return self.tower_of(None)

    def tower_of(self, rounding: Rounding | None) -> LoadedTower:
        """Load the tower."""
        tower = load_tower(self.files.tower, self.text, rounding=rounding)
        assert tower is not None
        return tower

    @cached_property
    def oracle(self) -> TowerOracle:
        """The tower in NumPy."""
        return TowerOracle(self.files.tower)

    @property
    def both(self) -> bool:
        """Whether rows of a picture see each other in the text model."""
        return self.text.family.both(self.text.cfg)

    @property
    def mark(self) -> int:
        """The token that stands for a row of a picture."""
        config = make.config(self.name).hf
        keys = ("image_token_id", "image_token_index", "media_placeholder_token_id")
        return next(config[key] for key in keys if key in config)

    @property
    def numbers(self) -> range:
        """Numbers of the pictures."""
        return range(len(EYES[self.name].sizes))

    @property
    def chats(self) -> tuple[Chat, ...]:
        """The chats, as eyes.py has them."""
        return EYES[self.name].chats

    def file(self, number: int) -> bytes:
        """Return a picture as a file."""
        return png(EYES[self.name].picture(number))

    def picture(self, number: int) -> Picture:
        """Return what a picture becomes, and its golden pixels."""
        plan = self.tower.plan(*EYES[self.name].sizes[number])
        return plan, [self.golden[f"pixels_{number}_{k}"] for k in range(len(plan.resizes))]

    def opened(self, number: int) -> list[np.ndarray]:
        """Return the pixels of a picture's file, as we resize it."""
        plan = self.tower.plan(*EYES[self.name].sizes[number])
        return open_picture(self.file(number), lambda *_: plan.resizes)[1]

    @cached_property
    def features(self) -> list[F32]:
        """Features of all pictures, each computed alone."""
        return [self.tower.features([self.picture(i)])[0] for i in self.numbers]

    def shown(self, number: int) -> Shown:
        """Return a chat as a step takes it."""
        pictures = pictures_of(self.chats[number])
        plans = [self.tower.plan(*EYES[self.name].sizes[i]) for i in pictures]
        features = [self.features[i] for i in pictures]
        return lay_out(self.golden[f"ids_{number}"].tolist(), self.mark, plans, features, both=self.both)

    def messages(self, number: int) -> list[Message]:
        """Return a chat as a user sends it."""
        return [
            Message(
                cast(Any, role),
                parts=tuple(p if isinstance(p, str) else Image.of(self.file(p)) for p in parts),
            )
            for role, parts in self.chats[number]
        ]

    def greedy(self, number: int) -> list[int]:
        """Return the tokens of a chat's answer, up to the first that is not clear."""
        clear = int(np.cumprod(self.golden[f"margins_{number}"] > CLEAR).sum())
        return self.golden[f"greedy_{number}"][:clear].tolist()


def pictures_of(chat: Chat) -> list[int]:
    """Return which pictures a chat shows, in order."""
    return [part for _, parts in chat for part in parts if isinstance(part, int)]


def seen(names: Sequence[str]) -> list[Any]:
    """Return each model in each form, as a fixture's parameters."""
    return [pytest.param((name, form), id=f"{name}-{form}") for name in names for form in EYES[name].forms]
