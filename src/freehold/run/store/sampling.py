"""Sampling defaults: the author's where a file or the catalogue states them, else Freehold's.

Knows generation metadata in both file formats, and the catalogue's word for files without; knows no sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from freehold.base.catalog.models import recommended
from freehold.run.formats import GGUFFile, ModelFile
from freehold.run.formats.fields import Fields

FREEHOLD = "freehold default"
# A little below 1 keeps small models on the track; the tail below 5 % of the best token is noise for them.
FREEHOLD_DEFAULTS: dict[str, object] = {
    "temperature": 0.7,
    "top_k": 0,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_window": 64,
}

_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "penalty_window": "general.sampling.penalty_last_n",
}
_HF_KEYS = {
    name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
}

_READERS: dict[str, Callable[[Fields, str], object]] = {
    "temperature": lambda f, key: f.number(key, 0.0, 100.0),
    "top_k": lambda f, key: f.integer(key, 0, (1 << 31) - 1),
    "top_p": lambda f, key: f.number(key, 1e-6, 1.0),
    "min_p": lambda f, key: f.number(key, 0.0, 1.0),
    "typical_p": lambda f, key: f.number(key, 1e-6, 1.0),
    "repetition_penalty": lambda f, key: f.number(key, 1e-6, 100.0),
    "penalty_window": lambda f, key: f.integer(key, 0, (1 << 31) - 1),
}


def sampling_defaults(source: ModelFile) -> dict[str, tuple[object, str]]:
    """Return each field of SamplingParams but seed and bias, with its origin.

    That is a key of the file; where the file states nothing at all, its family's own recommendation; else Freehold.
    Raises BadModelFile when the file states a value out of range.
    """
    if isinstance(source, GGUFFile):
        stated = _stated(source.metadata, _GGUF_KEYS, "") or _recommended(source.metadata)
    else:
        stated = _hf_stated(source.generation_config)
    return {name: stated.get(name, (value, FREEHOLD)) for name, value in FREEHOLD_DEFAULTS.items()}


def _recommended(metadata: Mapping[str, Any]) -> dict[str, tuple[object, str]]:
    """Look the family up by the name that a GGUF states."""
    name, size = metadata.get("general.basename"), metadata.get("general.size_label")
    names = (f"{name} {size}" if name and size else name, metadata.get("general.name"))
    fields, source = recommended(*(each for each in names if isinstance(each, str)))
    return {field: (value, source) for field, value in fields.items()}


def _hf_stated(config: Mapping[str, Any]) -> dict[str, tuple[object, str]]:
    """Read generation_config.json, where `do_sample` false makes every answer greedy."""
    if config.get("do_sample") is False:
        return {"temperature": (0.0, "generation_config.json: do_sample")}
    return _stated(config, _HF_KEYS, "generation_config.json: ")


def _stated(values: Mapping[str, Any], keys: Mapping[str, str], where: str) -> dict[str, tuple[object, str]]:
    fields = Fields(values)
    return {
        name: (_READERS[name](fields, key), where + key)
        for name, key in keys.items()
        if fields.get(key) is not None
    }
