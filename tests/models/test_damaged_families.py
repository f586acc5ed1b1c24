"""A damaged config or tensor of any family is refused by name: never ignored, never another exception.

The damages are made from the declarations: every key that reading the sound file asks for gets a value it cannot have,
and stored tensors are taken away, reshaped, and joined by one that no part declares.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile
from freehold.run.formats import QuantType, Tensor, open_model_file
from freehold.run.formats.fields import Metadata
from freehold.run.models.binding.bind import read_source
from freehold.run.models.binding.binder import ExpertStack, RowCut, Stored, Taken
from tests.models.golden import write_model
from tests.vectors.weights import FAMILIES

FORMS = [
    (name, form) for name, tiny in FAMILIES.items() for form in ("hf", "gguf") if form == "hf" or tiny.gguf
]
HUGE = 1 << 40
# What they do not name is refused as an architecture.
NAMES = ("architectures", "model_type", "general.architecture")
# Where another key says the same, that one counts: the rope's own length, a list of the layers' kinds.
SAID_TWICE = ("original_max_position_embeddings", "first_k_dense_replace", "sliding_window_pattern")
NOT_ITS = ("tokenizer.", "general.name")  # of the model


class Asked(Metadata):
    """Metadata that remembers what was asked for."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(dict(values), where)
        self.keys_read: dict[str, None] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read[key] = None
        return super().get(key, default)


def impossible(value: Any) -> Iterator[Any]:
    """Yield values of the wrong type or far outside every limit for a key that has this one."""
    if isinstance(value, bool):
        yield from (7, "maybe")
    elif isinstance(value, int):
        yield from (-7, HUGE, "many")
    elif isinstance(value, float):
        yield from (float("nan"), "much")
    elif isinstance(value, str):
        yield from ("unheard-of", 7)
    elif isinstance(value, list | np.ndarray):
        odd = ("odd",) if len(value) and isinstance(value[0], float | np.floating) else ("odd", -7)
        yield from ([each] * len(value) for each in odd if len(value))
    elif isinstance(value, Mapping):
        yield 7


def altered(sound: Any, keys: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return an open model with other metadata and tensors."""
    file = copy.copy(sound)
    if hasattr(file, "config"):
        file.config = Metadata(dict(keys), "config.json")
    else:
        file.metadata = Metadata(dict(keys), sound.path.name)
    file.tensors = MappingProxyType(dict(tensors))
    return file


def refused(sound: Any, keys: Mapping[str, Any], tensors: Mapping[str, Tensor], *names: str) -> str:
    """Return what is wrong with how a damaged model is refused; empty: nothing."""
    try:
        read_source(altered(sound, keys, tensors))
    except BadModelFile as error:
        named = error.message.startswith("tensor ") or any(name in error.message for name in names)
        return "" if named else f"does not name it: {error.message}"
    except Exception as error:
        return f"leaks {type(error).__name__}: {error}"
    return "is not refused"


def stored_names(tensor: Stored) -> list[str]:
    """List the tensors of the file that a declared weight is made of, but for those that are joined."""
    if isinstance(tensor, Tensor):
        return [tensor.name]
    if isinstance(tensor, ExpertStack):
        return [each.name for each in tensor.each]
    return stored_names(tensor.whole) if isinstance(tensor, RowCut | Taken) else []


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_impossible_values_of_every_key_are_refused_by_name(family: str, form: str, tmp_path: Path):
    path = write_model(family, form, tmp_path)
    file: Any = open_model_file(path)
    sound = dict(file.config if path.is_dir() else file.metadata)
    asked, looked = Asked(sound, "sound"), altered(file, {}, file.tensors)
    setattr(looked, "config" if path.is_dir() else "metadata", asked)
    read_source(looked)
    wrong = []
    for key in asked.keys_read:
        if sound.get(key) is None or key.startswith(NOT_ITS) or key in (*NAMES, *SAID_TWICE):
            continue
        for value in impossible(sound[key]):
            short = key.rsplit(".", 1)[-1]
            found = refused(file, sound | {key: value}, file.tensors, short)
            wrong += [f"{key} = {value!r:.40} {found}"] if found else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_missing_misshapen_and_foreign_tensors_are_refused_by_name(family: str, form: str, tmp_path: Path):
    path = write_model(family, form, tmp_path)
    file: Any = open_model_file(path)
    sound = dict(file.config if path.is_dir() else file.metadata)
    foreign = Tensor("stranger.weight", QuantType.F32, (2,), np.zeros(8, np.uint8))
    wrong = [refused(file, sound, {**file.tensors, foreign.name: foreign}, foreign.name)]
    source = read_source(file)
    bound = [b for group in (source.ends, *source.layers) for b in group.values()]
    needed = [
        name for b in bound if not (b.spec.optional or b.spec.default) for name in stored_names(b.tensor)
    ]
    for name in needed[:: max(len(needed) // 12, 1)]:
        tensor = file.tensors[name]
        last = tensor.shape[-1] + 1 if tensor.shape else 2  # a single value has no shape
        longer = Tensor(name, QuantType.F32, (*tensor.shape[:-1], last), tensor.raw)
        wrong.append(refused(file, sound, {**file.tensors, name: longer}, name))
        rest = {other: tensor for other, tensor in file.tensors.items() if other != name}
        wrong.append(refused(file, sound, rest, name))
    assert not any(wrong), "\n".join(filter(None, wrong))
