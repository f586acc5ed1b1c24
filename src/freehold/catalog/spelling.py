"""Finds the model that a name means when it is spelled as people type it: `Mistral Small 4`, `qwen2.5vl:7b`, `tulu3`.

Compares words, sizes and versions in whatever order; what only says how a model is packed, dated or trained to talk
may be left out. Knows names alone. A name that fits several sizes of a family returns all of them, never a guess.
Path: catalog.model, advisor.lineage -> spelled -> Model
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from freehold.catalog.model import Model

# words that may be missing or added: how it talks, how it is packed
_FLUFF = frozenset(
    {
        "instruct",
        "instruction",
        "chat",
        "it",
        "hf",
        "pt",
        "base",
        "latest",
        "preview",
        "text",
        "release",
        "gguf",
    }
)
_UNTUNED = frozenset({"base", "pt", "text"})
_MODES = frozenset({"reasoning", "thinking"})
# words that stand for a size: `deepseek-coder-v2:16b` is the Lite one
_SIZE_WORDS = frozenset({"lite", "mini", "small", "medium", "large", "tiny", "nano", "super", "ultra"})
_QUANT = re.compile(r"[-_: ](i?q\d[\w.]*|fp?16|bf16|fp8|int[48]|mxfp4|nvfp4)$")
# 08-2025, 2512, 0528, v0.3; a generation such as v3 stays
_DATE = re.compile(r"[- ](\d\d-20\d\d|2[3-9](?:0[1-9]|1[0-2])|(?:0[1-9]|1[0-2])[0-3]\d|v0\.\d)(?=$|[- ])")
_WORD = re.compile(r"a\d+(?:\.\d+)?b(?![a-z])|\d+(?:\.\d+)*(?:[a-z](?![a-z]))?|[a-z]+")
# what a repository's name may add to the one people type: experts, context, a version of its own, its size
_UNSAID = re.compile(r"a?\d+(?:\.\d+)?[ekmbt]|v|1|01|02|release")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([mbt])")
_ACTIVE = re.compile(r"a\d+(?:\.\d+)?b")
_BILLIONS = {"m": 1e-3, "b": 1.0, "t": 1e3}
_NEAR = 0.08  # of a model's weights that the size in a name may be off


def spelled(text: str, models: Iterable[Model]) -> list[Model]:
    """Return the models that `text` may mean: one where it is plain, several where it leaves the size open."""
    wanted, dates = words(text), _dates(text)
    if "/" in text or not _is_name(wanted):
        return []
    dated = [m for m in models if dates <= _dates(m.id) and (not wanted & _UNTUNED or _continues(m))]
    fits = [(cost, m) for m in dated if (cost := _left_out(wanted, m)) is not None]
    if (
        not fits
    ):  # `jamba 1.5`: Mini or Large; a word for a size may be left open, but one model alone is a guess
        sized = [m for m in dated if any(wanted | {word} == _tail(m) - words(m.lab) for word in _SIZE_WORDS)]
        return sized if len(sized) > 1 else []
    least = min((cost for cost, _ in fits), default=0)
    best = [m for cost, m in fits if cost == least]
    talking = _newest([m for m in best if m.instructed is not False] or best)
    closest = min((_unasked(m, wanted) for m in talking), default=(0, 0))
    nearest = [m for m in talking if _unasked(m, wanted) == closest]
    return nearest if len(nearest) == 1 else talking


def reordered(text: str, models: Iterable[Model]) -> list[Model]:
    """Return the models of an owner whose name has the words of `owner/name` in another order.

    Repositories are renamed: AI21-Jamba-1.5-Mini became AI21-Jamba-Mini-1.5.
    """
    owner, _, tail = text.lower().partition("/")
    return [m for m in models if tail and m.id.lower().startswith(f"{owner}/") and _tail(m) == words(tail)]


def alike(text: str, repositories: Iterable[str]) -> list[str]:
    """Return the repositories that `text` may mean: whose names add nothing to it but how they talk and were packed.

    Sizes count: a name that leaves one out returns every size there is.
    """
    wanted = words(text)
    if not _is_name(wanted - _FLUFF):
        return []
    fits: dict[str, frozenset[str]] = {}
    for repository in repositories:
        tail = words(repository.rpartition("/")[2].removeprefix("c4ai-"))
        if wanted - _FLUFF <= tail and not {w for w in tail - wanted - _FLUFF if not _UNSAID.fullmatch(w)}:
            fits[repository] = tail
    exact = {name for name, tail in fits.items() if not {w for w in tail - wanted if _SIZE.fullmatch(w)}}
    return sorted(exact or fits)


def _is_name(wanted: frozenset[str]) -> bool:
    """Say whether words name anything: sizes and versions alone do not."""
    return any(w[0].isalpha() for w in wanted)


def _continues(model: Model) -> bool:
    """Tell whether a model continues text and follows no instruction, or has a name that says so."""
    return model.instructed is False or bool(_tail(model) & _UNTUNED)


def _unasked(model: Model, wanted: frozenset[str]) -> tuple[int, int]:
    """Return how many words of a model's name say more than was asked: of how it thinks, then of how it talks."""
    rest = _tail(model) - wanted
    return len(rest & _MODES), len(rest & _FLUFF)


def _dates(text: str) -> set[str]:
    """Return the dates and versions in a name: of two models that differ in them alone, they choose one."""
    return set(_DATE.findall(text.strip().lower().replace("_", "-").replace(":", "-")))


def words(text: str) -> frozenset[str]:
    """Return a name's words, versions and sizes, without accents, dates and quantisations."""
    plain = unicodedata.normalize("NFKD", text.strip().lower())
    if plain.startswith("qwen:"):  # in Ollama's library the name without a version is Qwen1.5
        plain = plain.replace("qwen", "qwen1.5", 1)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"(?<=\d)_(?=\d)", ".", _QUANT.sub("", plain)).replace("_", "-").replace(":", "-")
    return frozenset(re.sub(r"\.0(?=[a-z]?$)", "", w) for w in _WORD.findall(_DATE.sub("", plain)))


def _tail(model: Model) -> frozenset[str]:
    return words(model.id.rpartition("/")[2])


def _left_out(wanted: frozenset[str], model: Model) -> int | None:
    """Return how many sizes and versions a name leaves out; None where it is another model's."""
    tail = _tail(model)
    sizes = {w for w in wanted if _is_size(w, model)}
    if any(_SIZE.fullmatch(w) for w in wanted - tail - sizes):
        return None
    ignored = _FLUFF | sizes | words(model.lab) | words(model.id.partition("/")[0])
    ignored |= _SIZE_WORDS if sizes - tail else frozenset()
    missing = {w for w in tail - wanted - ignored - {"v"} if not _ACTIVE.fullmatch(w)}
    open_sizes = {w for w in missing if _SIZE.fullmatch(w)}
    if not wanted - tail - ignored and missing == open_sizes:
        return len(open_sizes)
    family = words(model.family) - ignored
    if family and wanted - ignored == family:
        return int(not sizes)
    unnumbered = {w for w in family if not w[0].isdigit()}
    return 2 if unnumbered and wanted == unnumbered else None


def _is_size(word: str, model: Model) -> bool:
    """Say whether a word is the model's size: `16b` of 15.7 billion weights."""
    match = _SIZE.fullmatch(word)
    if match is None or not model.params_b:
        return False
    return abs(float(match[1]) * _BILLIONS[match[2]] / model.params_b - 1) <= _NEAR


def _newest(models: list[Model]) -> list[Model]:
    """Of models whose names differ in their dates alone, keep the one without a date, or else the newest."""
    kept: dict[frozenset[str], Model] = {}
    for m in sorted(models, key=lambda m: (not _DATE.search(m.id), m.released)):
        kept[_tail(m)] = m
    return [m for m in models if m in kept.values()]
