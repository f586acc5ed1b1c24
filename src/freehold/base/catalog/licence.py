"""Licences as data: one entry per text and version, each term with its clause, our wording and a source.

Holds no licence's text: it names where the text is and the digest of the copy that was read. Repositories are named
by the licences and in data/repositories.toml, whole, never by a pattern. Judges nothing;
what a term means for a user is advisor.verdict's. Terms not restated are those of the entry it `extends`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from freehold.base.catalog.model import data_table, texts
from freehold.base.errors import StoreError, UsageError

# The expression language in which licence data says when a term holds: `commercial and users > 100_000_000`.
# What each word means. Which of the user's facts decide it is the advisor's to know.
FLAGS = {
    "commercial": "the purpose is not personal or academic research",
    "production": "it serves a product or the work inside a firm, beyond tests",
    "internal": "nothing of the model leaves the firm",
    "offers_access": "third parties get access to the model itself",
    "embeds": "customers use a product or service built on it",
    "model_service": "the group sells inference or fine-tuning of language models",
    "assistant": "the group sells an AI work assistant",
    "redistributes": "weights are passed on",
    "shares": "weights are passed on, or access to the model is offered",
    "supplies": "others get the weights, access to the model, or a product built on it",
    "modifies": "the model is changed or fine-tuned",
    "distils": "outputs train another model",
    "same_family": "the trained model is of the family the licence itself covers",
    "narrow": "the trained model only sorts or extracts, as a classifier does",
    "end_user": "the model is only used inside another company's product",
    "bypasses_guardrails": "guardrails in the model are weakened",
    "eu": "the principal place of business is in the European Union",
    "uk": "the principal place of business is in the United Kingdom",
    "korea": "the principal place of business is in South Korea",
    "multimodal": "the model takes more than text",
}
AMOUNTS = {
    "users": "monthly users of all products",
    "revenue_month": "the group's revenue in a month, in dollars",
    "revenue_year": "the group's revenue in 12 months, in dollars",
}
_ATOM = re.compile(r"(not )?([a-z_]+)(?: > ([0-9_]+))?")


@dataclass(frozen=True, slots=True)
class Atom:
    """One word: a flag, or an amount and the figure it must exceed."""

    word: str
    negated: bool = False
    above: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when every atom of any of its `ways` does. No ways at all: always."""

    ways: tuple[tuple[Atom, ...], ...] = ()


def parse(text: str) -> Condition:
    """Read a condition; an empty text always holds. Raises ValueError naming the word that is none."""
    if not text.strip():
        return Condition()
    return Condition(tuple(tuple(map(_atom, way.split(" and "))) for way in text.split(" or ")))


def _atom(text: str) -> Atom:
    match = _ATOM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a condition")
    negated, word, above = bool(match[1]), match[2], match[3]
    if word not in (AMOUNTS if above else FLAGS):
        raise ValueError(f"{word!r} is no {'amount' if above else 'flag'}")
    return Atom(word, negated, int(above) if above else None)


# What every entry must speak of, in the order of its card; `service` only where a text has such a rule.
TOPICS = {
    "commercial": "commercial use",
    "modify": "modification",
    "redistribute": "redistribution",
    "outputs": "training on outputs",
    "name": "names and notices",
    "service": "model services",
    "scale": "users and revenue",
    "geography": "geography",
    "use": "acceptable use",
    "patents": "patents",
    "termination": "termination",
    "law": "law",
}
EFFECTS = ("grants", "refuses", "requires", "notes", "silent", "unknown")
CLASSES = ("permissive", "custom", "restricted", "service")  # service: an API's terms, no weights
# How well the entry is founded: the text with its digest, a copy of it, clauses as others quote them, reports.
EVIDENCE = ("text", "copy", "quoted", "reported")
DUTIES = (
    "copy",  # pass on a copy of the licence
    "notices",  # keep the notices that are there
    "notice",  # a NOTICE file with the line in `text`
    "changes",  # mark what was changed
    "display",  # show the words in `text`
    "prefix",  # begin the model's name with `text`
    "credit",  # name the makers
    "policy",  # keep a use policy; `text`: where it is
    "pass-on",  # bind your own users by the same restrictions
    "law",  # lawful use and honest naming
    "limit",  # what is made stays under the same limit
    "ask",  # register or tell the licensor
)
_KEYS = {"id", "name", "aliases", "extends", "class", "issued", "url", "text", "sha256", "evidence"}
_KEYS |= {"checked", "covers", "serves", "note", "outputs_bind", "family", "term"}
# How a copy's name says that it is packed otherwise; the licence stays that of the model.
_PACKED = re.compile(
    r"(-(gguf|awq|gptq(-int[48])?|int[48]|fp8(-dynamic|-block)?|bf16|nvfp4|mxfp4|w4a16|w8a8|mlx(-\w+)?|onnx|bnb-4bit))+$",
    re.I,
)
_TERM_KEYS = {"topic", "effect", "when", "clause", "says", "do", "text", "source"}


@dataclass(frozen=True, slots=True)
class Term:
    """One thing a licence says: about `topic`, with `effect`, where `when` holds, in `clause`.

    `says` is our wording. `duty` and `text` (of a term that requires) tell what to do and with which words.
    `source` only where it differs from the licence's.
    """

    topic: str
    effect: str
    clause: str
    says: str
    when: Condition = field(default_factory=Condition)
    duty: str = ""
    text: str = ""
    source: str = ""

    @property
    def sentence(self) -> str:
        """`says`, then the words to show or the address, quoted."""
        return f'{self.says} "{self.text}"' if self.text else self.says


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence text of one version. `id` is SPDX's, or LicenseRef-... where SPDX has none.

    `outputs_bind`: a model trained on this one's outputs to act like it counts as a derivative, so all
    terms follow. `covers`: repositories that carry it, each named whole: a fact by itself, of the same date.
    `family`: what the text calls its own model where it excepts it ("excluding Tongyi Qianwen"), shared with the
    other texts of that model; the identifier unless stated.
    `serves`: names of models behind an API whose terms these are; a pattern only where they refuse training.
    """

    id: str
    name: str
    publisher: str
    kind: str  # permissive | custom | restricted | service
    url: str
    text: str  # which copy of the text the facts come from
    evidence: str  # text | copy | quoted | reported
    checked: date
    terms: tuple[Term, ...]
    aliases: tuple[str, ...] = ()
    issued: date | None = None
    sha256: str = ""
    covers: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    note: str = ""
    outputs_bind: bool = False
    family: str = ""

    def about(self, topic: str) -> tuple[Term, ...]:
        """Return the terms on one topic."""
        return tuple(t for t in self.terms if t.topic == topic)


@cache
def licences() -> tuple[Licence, ...]:
    """Return every licence we know, sorted by name."""
    by_id: dict[str, Licence] = {}
    waiting: list[tuple[str, str, dict[str, Any]]] = []
    for where, text in texts("licences").items():
        data = tomllib.loads(text)
        waiting += [(where, data["publisher"], raw) for raw in data["licence"]]
    while waiting:
        ready = [w for w in waiting if w[2].get("extends", "") in ("", *by_id)]
        if not ready:
            raise StoreError(f"{waiting[0][0]}: {waiting[0][2]['id']} extends a licence that does not exist")
        for where, publisher, raw in ready:
            by_id[raw["id"]] = build(where, publisher, raw, by_id.get(raw.get("extends", "")))
        waiting = [w for w in waiting if w[2]["id"] not in by_id]
    return tuple(sorted(by_id.values(), key=lambda licence: licence.name))


def licence(text: str) -> Licence:
    """Return the licence of an SPDX identifier, a LicenseRef or a hub's tag such as `llama3.1`.

    Raises UsageError with the nearest names as hint.
    """
    if licence_of_text := find(text):
        return licence_of_text
    near = suggestions(text)
    hint = f"did you mean {' or '.join(near)}?" if near else "freehold license lists those it knows"
    raise UsageError(f"no licence named {text!r}", hint)


def find(text: str) -> Licence | None:
    """Return the licence that `text` names, or None."""
    return _names().get(_plain(text))


def suggestions(text: str) -> list[str]:
    """Return the identifiers and short names that look most like `text`, best first."""
    near = difflib.get_close_matches(_plain(text), list(_names()), n=6, cutoff=0.5)
    shown = dict.fromkeys(short_name(_names()[name]) for name in near)
    return list(shown)[:3]


def covering(model_id: str) -> Licence | None:
    """Return the licence of a repository outside the catalogue, by its id or its last part alone.

    A licence's own list comes before the publisher's tag.
    """
    return _covered().get(model_id.strip().lower())


def covered() -> tuple[str, ...]:
    """Return every repository that a licence or a publisher's tag names, as publisher/name in small letters."""
    return tuple(name for name in _covered() if "/" in name)


def tag_source(model_id: str) -> str:
    """Return what a repository's licence was read from where that is its publisher's tag alone; else nothing."""
    tags = _tags()
    return (
        f"{tags.source} (checked {tags.checked.isoformat()})"
        if model_id.strip().lower() in tags.names
        else ""
    )


def serving(name: str) -> Licence | None:
    """Return the terms of the API behind which a model of this name is run; the longest pattern wins."""
    plain = "-".join(name.strip().lower().rpartition("/")[2].split())
    hits = [(len(p), one) for one in licences() for p in one.serves if fnmatchcase(plain, p)]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def unpacked(model_id: str) -> str:
    """Return the id without what only says how its weights are packed: `-GGUF`, `-AWQ`, `-FP8` and the like."""
    return _PACKED.sub("", model_id)


def build(where: str, publisher: str, raw: dict[str, Any], parent: Licence | None = None) -> Licence:
    """Turn one TOML table into a licence; raise StoreError naming the entry and what is wrong with it."""
    label = f"{where}: {raw.get('id', '(no id)')}"
    if unknown := raw.keys() - _KEYS:
        raise StoreError(f"{label}: unknown key {sorted(unknown)[0]!r}")
    for key in ("id", "name", "class", "url", "text", "evidence", "checked"):
        if not raw.get(key):
            raise StoreError(f"{label}: {key} is missing or empty")
    _one_of(label, "class", raw["class"], CLASSES)
    _one_of(label, "evidence", raw["evidence"], EVIDENCE)
    covers = tuple(name for listed in raw.get("covers", ()) for name in expand(listed))
    if wild := next((c for c in covers if re.search(r"[*?\[{}]", c) or c.count("/") != 1), ""):
        raise StoreError(f"{label}: covers names {wild!r}; a repository is named whole, org/name")
    own = tuple(_term(label, t) for t in raw.get("term", []))
    restated = {t.topic for t in own}
    inherited = tuple(t for t in parent.terms if t.topic not in restated) if parent else ()
    order = list(TOPICS)
    terms = tuple(sorted((*own, *inherited), key=lambda t: order.index(t.topic)))
    refuses = any(t.topic == "outputs" and t.effect == "refuses" for t in terms)
    if any("*" in name for name in raw.get("serves", ())) and not refuses:
        raise StoreError(f"{label}: serves has a pattern, but the terms do not refuse training on outputs")
    return Licence(
        id=raw["id"],
        name=raw["name"],
        publisher=publisher,
        kind=raw["class"],
        url=raw["url"],
        text=raw["text"],
        evidence=raw["evidence"],
        checked=raw["checked"],
        terms=terms,
        aliases=tuple(raw.get("aliases", ())),
        issued=raw.get("issued"),
        sha256=raw.get("sha256", ""),
        covers=covers,
        serves=tuple(raw.get("serves", ())),
        note=raw.get("note", ""),
        outputs_bind=raw.get("outputs_bind", False),
        family=raw.get("family", raw["id"]),
    )


def expand(text: str) -> list[str]:
    """Spell out `a{b,c}d` as abd and acd, for each pair of braces."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    return [
        n for part in match[1].split(",") for n in expand(text[: match.start()] + part + text[match.end() :])
    ]


def _term(label: str, raw: dict[str, str]) -> Term:
    if unknown := raw.keys() - _TERM_KEYS:
        raise StoreError(f"{label}: unknown key {sorted(unknown)[0]!r} in a term")
    _one_of(label, "topic", raw.get("topic", ""), tuple(TOPICS))
    _one_of(label, "effect", raw.get("effect", ""), EFFECTS)
    if (raw["effect"] == "requires") != ("do" in raw):
        raise StoreError(f"{label}: a term that requires, and no other, says what to `do`")
    if "do" in raw:
        _one_of(label, "do", raw["do"], DUTIES)
    try:
        says = raw["topic"], raw["effect"], raw["clause"], raw["says"], parse(raw.get("when", ""))
        return Term(*says, *(raw.get(key, "") for key in ("do", "text", "source")))
    except (KeyError, ValueError) as e:
        raise StoreError(f"{label}: a term on {raw['topic']}: {e}") from e


def _one_of(label: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise StoreError(f"{label}: {key} = {value!r} is not one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class _Tags:
    """Repositories by their publisher's own licence tag: lower-case names and the licence's identifier."""

    names: dict[str, str]
    source: str
    checked: date


@cache
def _tags() -> _Tags:
    data = dict(data_table("repositories.toml"))
    source, checked = data.pop("source"), data.pop("checked")
    names = {
        f"{publisher}/{name}".lower(): identifier
        for identifier, publishers in data.items()
        for publisher, listed in publishers.items()
        for name in listed
    }
    return _Tags(names, source, checked)


@cache
def _covered() -> dict[str, Licence]:
    """Map every repository that a licence or a tag names to its licence, and its last part where that is not shared."""
    by_id = {one.id: one for one in licences()}
    whole = {name: by_id[identifier] for name, identifier in _tags().names.items()}
    whole |= {name.lower(): one for one in licences() for name in one.covers}
    tails: dict[str, set[str]] = {}
    for name, one in whole.items():
        tails.setdefault(name.rpartition("/")[2], set()).add(one.id)
    lone = {name.rpartition("/")[2]: one for name, one in whole.items()}
    return {tail: one for tail, one in lone.items() if len(tails[tail]) == 1} | whole


@cache
def _names() -> dict[str, Licence]:
    """Map every identifier, name and alias, plainly spelled, to its licence."""
    table: dict[str, Licence] = {}
    for one in licences():
        for name in (one.id, one.name, *one.aliases):
            table.setdefault(_plain(name), one)
    return table


def _plain(text: str) -> str:
    plain = text.strip().lower().removeprefix("licenseref-").removeprefix("scancode-")
    return "-".join(plain.replace("_", "-").split())


def short_name(one: Licence) -> str:
    """Return what people call a licence: its hub's tag where SPDX has no identifier for it."""
    return one.aliases[0] if one.aliases and one.id.startswith("LicenseRef-") else one.id
