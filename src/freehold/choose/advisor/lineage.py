"""Finds the licences that apply to a model: its own and those of every model it was made from.

Knows names, parents and licence identifiers; knows no user's facts and judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from freehold.base import catalog
from freehold.base.catalog.entries import alike, entries, packed_by_others, spelled, tags_of
from freehold.base.catalog.licence import (
    Licence,
    covered,
    covering,
    find,
    serving,
    short_name,
    suggestions,
    tag_source,
    unpacked,
)
from freehold.base.catalog.model import Model, data_table
from freehold.base.errors import ModelNotFound, UsageError

MAX_DEPTH = 12  # generations; a longer chain is a mistake in the catalogue


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: a licence by itself, or a model with its licence expression and parents."""

    name: str
    expression: str  # SPDX identifiers, joined by AND or OR; empty: not known
    base: tuple[str, ...] = ()
    multimodal: bool | None = None
    source: str = ""  # where the licence of the model was read
    model: Model | None = None
    yours: bool = False  # a model of your own, which no licence of others binds


OWN = Subject("your own model", "", yours=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """A licence that binds: that of `model`, reached through `via` (empty for the subject itself).

    `choices` are the licences one may choose from (OR); one for each part that AND joins. None: unknown.
    """

    model: str
    via: tuple[str, ...]
    choices: tuple[Licence, ...]
    expression: str
    multimodal: bool | None


def subject(text: str | Model | Licence | Subject) -> Subject:
    """Find what is meant: a licence's name, a catalogue model, or a repository that a licence covers.

    Raises ModelNotFound with the nearest names of both kinds.
    """
    if isinstance(text, Subject):
        return text
    if isinstance(text, Licence):
        return Subject(text.name, text.id)
    if isinstance(text, Model):
        return _of_model(text)
    if "/" not in text and (match := find(text)):
        return Subject(match.name, match.id)
    if "/" not in text and (served := serving(text)):
        return Subject(text, served.id, source=_covers(served))
    if (repository := _named_exactly(text)) is not None:
        return _of_model(repository)
    _ask_for_a_tag(text)
    try:
        return _of_model(catalog.model(text))
    except ModelNotFound as e:
        if (meant := _elsewhere(text)) is not None:
            return meant
        near = suggestions(text)
        also = f"; licences: {' or '.join(near)}" if near else ""
        raise ModelNotFound(f"no model or licence named {text!r}", e.hint + also) from None


def _named_exactly(text: str) -> Model | None:
    """Return the one model whose repository has this very name, capitals included: DeepSeek-R1, not deepseek-r1."""
    if text == text.lower():  # the spelling of tags, which may mean another size
        return None
    matches = [model for model in catalog.models() if model.id.rpartition("/")[2] == text]
    return matches[0] if len(matches) == 1 else None


def _ask_for_a_tag(text: str) -> None:
    """Refuse a name that leaves out its tag where the tags have different licences.

    To run one, `qwen2.5` means its 7b. A question of what is allowed may be about the 3b, which is for research alone.
    Raises ModelNotFound naming each with its licences.
    """
    if ":" in text or "/" in text:
        return
    ids = (*tags_of(text), *(e.model for e in entries() if e.family == text.strip().lower() and e.model))
    tagged = [catalog.model(one) for one in dict.fromkeys(ids)]
    if len({_licences_of(m) for m in tagged}) > 1:
        _family(text, sorted({*tagged, *spelled(text, catalog.models())}, key=lambda m: m.params_b or 0))


def _elsewhere(text: str) -> Subject | None:
    """Find what the catalogue does not name as one model.

    A repository that a licence names, a family under one licence, a packed copy of a known model, a model behind
    an API.
    """
    if (match := covering(text)) is not None:
        return _tagged(text, text, match)
    if (packs := packed_by_others(text)) and (match := covering(packs)) is not None:
        return _tagged(text, packs, match)
    if family := spelled(text, catalog.models()):
        return _family(text, family)
    if "/" not in text and (repositories := alike(text, covered())):
        return _repositories(text, repositories)
    if (plain := unpacked(text)) != text:
        try:
            return replace(subject(plain), name=text)
        except ModelNotFound:
            return None
    served = serving(text)
    return Subject(text, served.id, source=_covers(served)) if served is not None else None


def _family(text: str, models: list[Model]) -> Subject:
    """Return one subject for several models that have the same licences.

    Raises ModelNotFound naming each with its licence where they do not.
    """
    kinds = {(_licences_of(m), _of_model(m).multimodal) for m in models}
    if len(kinds) > 1:
        each = ", ".join(f"{m.id} ({_listed(m)})" for m in models[:8])
        raise ModelNotFound(
            f"{text!r} may be {len(models)} models under different licences", f"say which: {each}"
        )
    return replace(_of_model(models[0]), name=f"{text} ({len(models)} models)")


def _repositories(text: str, repositories: list[str]) -> Subject:
    """Return one subject for repositories outside the catalogue, as `_family` does for models in it."""
    licences = {name: one for name in repositories if (one := covering(name)) is not None}
    if len({one.id for one in licences.values()}) > 1:
        each = ", ".join(f"{name} ({one.name})" for name, one in list(licences.items())[:8])
        raise ModelNotFound(
            f"{text!r} may be {len(licences)} models under different licences", f"say which: {each}"
        )
    first = repositories[0]
    return _tagged(
        first if len(licences) == 1 else f"{text} ({len(licences)} models)", first, licences[first]
    )


def _tagged(name: str, repository: str, licence: Licence) -> Subject:
    return Subject(name, licence.id, source=tag_source(repository) or _covers(licence))


def _listed(model: Model) -> str:
    places = standing(_of_model(model))
    named = dict.fromkeys(short_name(one) for place in places for one in place.choices)
    return ", ".join(named) or "not known"


def _licences_of(model: Model) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(c.id for c in place.choices) for place in standing(_of_model(model)))


def standing(subject: Subject) -> list[Standing]:
    """Return the licences that bind a subject, its own first, then those of its ancestors.

    Raises UsageError for a line of descent that bites its own tail.
    """
    standings: list[Standing] = []
    if subject.yours:
        return standings
    _descend(subject, (), standings)
    return standings


def _descend(one: Subject, via: tuple[str, ...], standings: list[Standing]) -> None:
    if one.name in via or len(via) > MAX_DEPTH:
        chain = " -> ".join((*via, one.name))
        raise UsageError(f"the line of descent does not end: {chain}", "mend `base` in your catalogue.toml")
    for part in one.expression.split(" AND ") if one.expression else [""]:
        choices = tuple(c for c in map(find, part.strip("()").split(" OR ")) if c)
        standings.append(Standing(one.name, via, choices, part, one.multimodal))
    for parent in one.base:
        _descend(_ancestor(parent), (*via, one.name), standings)


def _ancestor(name: str) -> Subject:
    """Return a parent as far as it is known; its licence may be unknown, which then counts."""
    try:
        return subject(name)
    except ModelNotFound:
        return Subject(name, "")


def _of_model(model: Model) -> Subject:
    return Subject(
        name=model.id,
        expression=model.licence,
        base=model.base,
        multimodal=any(m != "text" for m in model.modalities) if model.modalities else None,
        source=model.licence_url or ", ".join(model.sources),
        model=model,
    )


def _covers(licence: Licence) -> str:
    return f"{licence.url} (checked {licence.checked.isoformat()})"


# --- rates how open a model is ----------------------------------------------------------------------
# A spectrum, the OSI's definition, and the class in the Model Openness Framework.
# Its licences and its ancestors' place it; what else is published (data, code) comes from dated facts. Claims
# no class without a source: an empty one is not known.

LEVELS = {
    1: "fully open: weights, data and code",
    2: "open weights, permissive licence",
    3: "open weights, custom licence",
    4: "open weights, significant restrictions",
    5: "closed: an API, no weights",
    0: "not known",
}
_KIND = {"permissive": 2, "custom": 3, "restricted": 4, "service": 5}


@dataclass(frozen=True, slots=True)
class Openness:
    """`level` is a key of LEVELS. `osi`: passes, would, fails, or empty; `mof`: I, II, III, or empty."""

    level: int
    osi: str
    mof: str
    says: str
    source: str

    @property
    def name(self) -> str:
        """The level in words."""
        return LEVELS[self.level]


def openness(subject: Subject) -> Openness:
    """Place a subject; the least open of its own and its ancestors' licences counts."""
    if subject.yours:
        return Openness(0, "", "", "the weights are your own, so you decide", "")
    levels = [min((_KIND[c.kind] for c in s.choices), default=0) for s in standing(subject)]
    least = 0 if 0 in levels else max(levels)
    entry, source = _entry(subject.name)
    if entry.get("level") == 1 and least > 2:
        entry = {}  # what is open in all its parts is not so under others' terms
    level = 1 if entry.get("level") == 1 and least in (1, 2) else least
    osi = entry.get("osi", "fails" if least in (3, 4, 5) else "")
    mof = entry.get("mof", "")
    says = entry.get("says") or _says(least)
    return Openness(level, osi, mof, says, source)


def _says(level: int) -> str:
    if level == 2:
        return (
            "the licence is free; no source states whether data and code are published, as the OSI requires"
        )
    if level == 5:
        return "the weights are not published; the terms of the service apply"
    if level in (3, 4):
        return "the licence limits use, so it is not an open source licence in the OSI's sense"
    return "the licence of the model or of one of its ancestors is not known"


def _entry(name: str) -> tuple[dict[str, Any], str]:
    data = data_table("openness.toml")
    for entry in data["model"]:
        if any(fnmatchcase(name.lower(), p.lower()) for p in entry["names"]):
            return entry, data["source"]["osi"]["text"]
    return {}, data["source"]["mof"]["text"]
