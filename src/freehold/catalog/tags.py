"""Parses names of other tools: Ollama's tags, links to the hub, repositories that only repack a model.

`plain` leaves out what says where a file lies and how it is packed; `tagged` knows what a tag of Ollama's library
means. Knows names alone; who repacks without changing a weight is a list, since any other repository may
hold anything.
Path: catalog.model, entries.find -> plain, tagged, repacked -> an id.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources

_HOSTS = re.compile(r"^(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_OLLAMA = re.compile(
    r"^(?:(?:https?://)?(?:www\.)?ollama\.com/|registry\.ollama\.ai/)?library/", re.IGNORECASE
)
# after a tag or a repository's name: the type of its weights, or the tool that wrote them
_TYPE = r"(?:ud-)?(?:i?q\d(?:_[a-z0-9]+)*|tq\d_\d|fp?16|fp?32|bf16|mxfp[48]|nvfp4|int[48])"
_PACKED_TAG = re.compile(rf"[-:]{_TYPE}$", re.IGNORECASE)
_PACKED_FILE = re.compile(rf":{_TYPE}$", re.IGNORECASE)
_PACKED_REPO = re.compile(
    r"-(?:(?:i1-)?gguf|ggml|awq(?:-int4|-4bit)?|gptq(?:-int[48]|-4bit)?|fp8(?:-dynamic|-block|-kv|-static-pertensor)?|"
    r"nvfp4|fp4|mxfp4|[348]bit|bf16|unsloth-bnb-4bit|bnb-4bit|mlx(?:-[348]bit)?|(?:quantized\.)?w(?:4a16|8a8|8a16)|"
    r"int4(?:-autoround)?|autoround)$",
    re.IGNORECASE,
)
# who converts and quantises, and trains nothing
_REPACKERS = frozenset({
    "amd", "bartowski", "ggml-org", "lmstudio-community", "maziyarpanahi", "mlx-community", "mradermacher",
    "neuralmagic", "nvidia", "quantfactory", "redhatai", "thebloke", "unsloth",
})  # fmt: skip
_TUNED = ("-instruct", "-chat", "-it")


def plain(text: str) -> str:
    """Return a name without a hub's address, `:latest`, and a type of weights after a tag.

    A repository keeps a type that is part of its own name: `Nemotron-3-Nano-30B-A3B-BF16`.
    """
    name = _OLLAMA.sub("", _HOSTS.sub("", text.strip())).removesuffix("/").removesuffix(":latest")
    return (_PACKED_FILE if "/" in name else _PACKED_TAG).sub("", name)


def packing(text: str) -> str:
    """Return the type of weights that a tag asks for, as GGUFs spell it; empty: none."""
    match = _PACKED_TAG.search(text.strip())
    return match[0][1:].upper().replace("FP16", "F16").replace("FP32", "F32") if match else ""


def tagged(text: str) -> str:
    """Return the id that a tag of Ollama's library means, with or without a type after it; empty: not known."""
    name = "-".join(plain(text).lower().split())
    return next((tag for wanted in untuned(name) if (tag := _tags().get(wanted, ""))), "")


def untuned(tag: str) -> tuple[str, ...]:
    """Return a tag, and it without what says that its model is tuned: `8b-instruct` is `8b`, a name has no tags."""
    shorter = (tag.removesuffix(word) for word in _TUNED if ":" in tag and tag.endswith(word))
    return tag, *shorter


def repacked(text: str) -> str:
    """Return the last part of the id that a repository repacks: `gemma-3-27b-it` of bartowski's; empty: unknown.

    The repacker may be the lab itself; `google_gemma-3-27b-it` names both, and so is taken at its second half.
    """
    owner, _, name = plain(text).partition("/")
    name = plain(name.partition(":")[0])
    stripped = _PACKED_REPO.sub("", name)
    if not name or (owner.lower() not in _REPACKERS and stripped == name):
        return ""
    lab, _, rest = stripped.partition("_")
    return rest if owner.lower() in _REPACKERS and rest and lab.isalnum() else stripped


def repacks(owner: str, lab: str) -> bool:
    """Say whether `owner` may hold a packed copy of a model whose id begins with `lab`."""
    return owner.lower() in _REPACKERS or owner.lower() == lab.lower()


def packed_by_others(text: str) -> str:
    """Return the last part of the id of which a known repacker holds a packed copy, by its name; empty: none."""
    owner, _, name = plain(text).partition("/")
    tail = repacked(text)
    return tail if owner.lower() in _REPACKERS and tail.lower() != name.partition(":")[0].lower() else ""


def tags_of(name: str) -> tuple[str, ...]:
    """Return the ids that a name's tags in Ollama's library mean: `deepseek-r1:70b` and the others of `deepseek-r1`."""
    family = "-".join(plain(name).lower().split()) + ":"
    return tuple(dict.fromkeys(model_tag for tag, model_tag in _tags().items() if tag.startswith(family)))


@cache
def _tags() -> dict[str, str]:
    text = resources.files("freehold.catalog").joinpath("data", "tags.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tags"]
