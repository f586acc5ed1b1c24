"""Sampling parameters: a model's defaults, and Ollama's words for them.

Defaults are the author's where a file or the catalogue states them, else Freehold's: from generation metadata in both
file formats, and the catalogue's word for files without. Ollama's are the `options` of a request and PARAMETER of a
Modelfile; one without a meaning here is listed in `warnings`, never dropped in silence. Knows names, types and ranges;
knows no sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from freehold.base.config import nearest
from freehold.base.errors import UsageError
from freehold.base.serving import MAX_STOP_CHARS, MAX_STOPS
from freehold.base.types import MAX_SEED

if TYPE_CHECKING:  # readers of files; most callers have none
    from freehold.run.formats import ModelFile
    from freehold.run.formats.fields import Fields

MAX_COUNT = 1 << 30  # more tokens than any context holds
MAX_GIVEN = 100  # names in one object

# name there -> (name here, lowest, highest); the lowest of a mass or a factor is itself left out
_NUMBERS: dict[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0.0, 100.0),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "typical_p": ("typical_p", 0.0, 1.0),
    "repeat_penalty": ("repetition_penalty", 0.0, 100.0),
    "presence_penalty": ("presence_penalty", -100.0, 100.0),
    "frequency_penalty": ("frequency_penalty", -100.0, 100.0),
}
_POSITIVE = frozenset({"top_p", "typical_p", "repeat_penalty"})
# Of a request Ollama takes a number beyond these as the nearest one that means something.
_CLAMPED = {"temperature": 0.0, "top_p": 1e-6, "min_p": 0.0, "typical_p": 1e-6}  # name -> the lowest
_COUNTS: dict[str, tuple[int, int]] = {
    "top_k": (-1, MAX_COUNT),
    "repeat_last_n": (-1, MAX_COUNT),
    "seed": (-MAX_SEED, MAX_SEED),
    "num_predict": (-2, MAX_COUNT),
    "num_ctx": (1, MAX_COUNT),
}
HONOURED = (*_NUMBERS, *_COUNTS, "stop")
# Known there, and why it does nothing here.
_IDLE = {
    **dict.fromkeys(
        ["num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa"],
        "the server decides how a model is loaded",
    ),
    **dict.fromkeys(["f16_kv", "vocab_only", "logits_all", "embedding_only"], "it means nothing here"),
    "num_keep": "nothing of a prompt is cut while an answer is made",
    "draft_num_predict": "guesses are as long as pays; answers are the same",
    **dict.fromkeys(
        ["mirostat", "mirostat_tau", "mirostat_eta", "tfs_z"], "this way of sampling is not here"
    ),
    "penalize_newline": "a line's end is a token like others",
}
_FLAGS = frozenset(
    {"use_mmap", "use_mlock", "low_vram", "numa", "f16_kv", "vocab_only", "logits_all"}
    | {"embedding_only", "penalize_newline"}
)
_OFF = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was given, in a Job's terms. `context`: the room that was asked for, which loading decides."""

    sampling: Mapping[str, object] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    context: int | None = None
    warnings: tuple[str, ...] = ()


def read(options: Mapping[str, object], *, strict: bool = False) -> Parameters:
    """Read names and values; null is nothing. Raises UsageError for a wrong value, if `strict` for unknown names."""
    if len(options) > MAX_GIVEN:
        raise UsageError(f"there are {len(options)} options; expected at most {MAX_GIVEN}")
    values = {name: value for name, value in options.items() if value is not None}
    clamped = {} if strict else _clamped(values)
    values |= clamped
    numbers = {name: _number(name, values[name]) for name in _NUMBERS if name in values}
    counts = {name: _count(name, values[name]) for name in _COUNTS if name in values}
    limit = counts.get("num_predict", -1)
    return Parameters(
        sampling={**{_NUMBERS[n][0]: v for n, v in numbers.items()}, **_counted(counts)},
        stop=_stops(values.get("stop", ())),
        max_tokens=limit if limit > 0 else None,
        context=counts.get("num_ctx"),
        warnings=(
            *(
                f"option {name} is {_shown(options[name])}; {used:g} was used"
                for name, used in clamped.items()
            ),
            *_strangers(values, strict),
        ),
    )


def from_text(name: str, text: str) -> object:
    """Return the value that a Modelfile's PARAMETER line writes as text. Raises UsageError."""
    if name == "stop" or name not in (*HONOURED, *_IDLE):
        return text
    if name in _FLAGS:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{name} is {text[:60]!r}; expected true or false")
        return text.lower() == "true"
    try:
        return float(text) if name in _NUMBERS or "." in text else int(text[:40])
    except ValueError:
        raise UsageError(f"{name} is {text[:60]!r}; expected a number") from None


def as_lines(options: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return name and value as a Modelfile writes them, a line for each stop text."""
    rows: list[tuple[str, str]] = []
    for name, value in options.items():
        each = value if isinstance(value, list | tuple) else [value]
        rows += [(name, _written(v)) for v in each if v is not None]
    return rows


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counted(counts: Mapping[str, int]) -> dict[str, object]:
    out: dict[str, object] = {}
    if "top_k" in counts:
        out["top_k"] = max(counts["top_k"], 0)
    if counts.get("seed", -1) >= 0:  # a negative one asks for chance
        out["seed"] = counts["seed"]
    window = counts.get("repeat_last_n")
    if window == 0:  # there: no penalties; here: a window without end
        out |= _OFF
    elif window is not None:
        out["penalty_window"] = max(window, 0)
    return out


def _clamped(values: Mapping[str, object]) -> dict[str, float]:
    """Return what is used for the numbers that are beyond their range."""
    out: dict[str, float] = {}
    for name, low in _CLAMPED.items():
        value, high = values.get(name), _NUMBERS[name][2]
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            out[name] = low if value < low else high
    factor = values.get("repeat_penalty")
    if isinstance(factor, int | float) and not isinstance(factor, bool) and factor <= 0:
        out["repeat_penalty"] = 1.0
    return out


def _number(name: str, value: object) -> float:
    _, low, high = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {_shown(value)}; expected a number")
    if not (low <= value <= high) or (name in _POSITIVE and value == 0):
        least = "more than 0" if name in _POSITIVE else f"{low:g}"
        raise UsageError(f"{name} is {_shown(value)}; expected {least} to {high:g}")
    return float(value)


def _count(name: str, value: object) -> int:
    low, high = _COUNTS[name]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # as JSON's writers in some languages spell whole numbers
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {_shown(value)}; expected a whole number")
    if not low <= value <= high:
        raise UsageError(f"{name} is {_shown(value)}; expected {low:,} to {high:,}")
    return value


def _stops(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"stop is {_shown(value)}; expected a text, or a list of texts")
    if len(texts) > MAX_STOPS:
        raise UsageError(f"stop has {len(texts)} texts; expected at most {MAX_STOPS}")
    for text in texts:
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise UsageError(f"a stop text has {len(text):,} characters; expected 1 to {MAX_STOP_CHARS:,}")
    return tuple(texts)


def _strangers(values: Mapping[str, object], strict: bool) -> list[str]:
    warnings = []
    for name in sorted(values.keys() - set(HONOURED)):
        if name in _IDLE:
            warnings.append(f"option {name} was ignored: {_IDLE[name]}")
            continue
        near = nearest(name[:60], [*HONOURED, *_IDLE])
        hint = f"did you mean {near}?" if near else f"known: {', '.join(HONOURED)}"
        if strict:
            raise UsageError(f"there is no parameter {name[:60]!r}", hint)
        warnings.append(f"unknown option {name[:60]!r} was ignored" + (f"; {hint}" if near else ""))
    return warnings


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 64:
        return "a number of more than 64 bits"
    return str(value).lower()


# --- a model's defaults ----------------------------------------------------------------------------

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
    from freehold.run.formats import GGUFFile

    if isinstance(source, GGUFFile):
        stated = _stated(source.metadata, _GGUF_KEYS, "") or _recommended(source.metadata)
    else:
        stated = _hf_stated(source.generation_config)
    return {name: stated.get(name, (value, FREEHOLD)) for name, value in FREEHOLD_DEFAULTS.items()}


def _recommended(metadata: Mapping[str, Any]) -> dict[str, tuple[object, str]]:
    """Look the family up by the name that a GGUF states."""
    from freehold.base.catalog.models import recommended

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
    from freehold.run.formats.fields import Fields

    fields = Fields(values)
    return {
        name: (_READERS[name](fields, key), where + key)
        for name, key in keys.items()
        if fields.get(key) is not None
    }
