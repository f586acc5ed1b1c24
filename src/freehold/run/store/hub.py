"""The Hugging Face hub: as a source of models, and asked what it says of them today.

As a source: one metadata call pins the commit and gives sizes and digests. It chooses one GGUF variant, or the
safetensors with their configuration; never a pickle. A repository's card is translated into the catalogue's terms.

`freehold models refresh` adds what differs to the user's own catalogue file: one request for a repository's card and
one for its config.json, pinned to the commit that the first one names. It overwrites no fact: a change is a new table
with today's date and its source. Knows no terminal.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from freehold.base import private
from freehold.base.catalog import Entry, Model, facts
from freehold.base.catalog.counting import count
from freehold.base.catalog.schema import MAX_BYTES, parse
from freehold.base.config import Settings
from freehold.base.errors import (
    AccessDenied,
    DownloadFailed,
    ModelNotFound,
    Offline,
    StoreError,
    UnsupportedModel,
)
from freehold.run.store.contract import OnEvent, Plan, PlannedFile
from freehold.run.store.http import MAX_TRIES, Http, fetch_files
from freehold.run.store.manifest import HeldFile, safe_relative
from freehold.run.store.quants import choose, ctranslate2_files, gguf_variants, mmproj_of, safetensors_files
from freehold.run.store.refs import Ref

# Translates a hub repository's card and configuration into the catalogue's terms.
# The hub's identifiers that name one licence text -> ours. "other" and "modified-mit" name several.
_LICENCES = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "llama2": "LicenseRef-scancode-llama-2-license-2023",
    "llama3": "LicenseRef-llama-3-license-2024",
    "llama3.1": "LicenseRef-scancode-llama-3.1-license-2024",
    "llama3.2": "LicenseRef-scancode-llama-3.2-license-2024",
    "llama3.3": "LicenseRef-scancode-llama-3.3-license-2024",
    "llama4": "LicenseRef-scancode-llama-4-cla-2025",
    "gemma": "LicenseRef-scancode-gemma-tou-2025-03-24",
    "tongyi-qianwen": "LicenseRef-scancode-tongyi-qianwen-2023",
    "qwen": "LicenseRef-scancode-qwen-2024",
    "qwen-research": "LicenseRef-qwen-research-2024",
    "mrl": "LicenseRef-MRL-0.1",
    "mnpl": "LicenseRef-MNPL-0.1",
}
_NOT_NAMED = {"", "other", "unknown"}
# key of config.json (or of its text_config) -> the catalogue's
_CONFIG = {
    "max_position_embeddings": "context",
    "hidden_size": "hidden",
    "vocab_size": "vocab",
    "num_experts_per_tok": "experts_per_token",
}


def licence(info: Any) -> str:
    """Return the licence that the card names: our identifier where the name has one, else the card's own word."""
    card = info.get("cardData") if isinstance(info, dict) else None
    if not isinstance(card, dict):
        return ""
    tag = card.get("license")
    if tag in _NOT_NAMED or not isinstance(tag, str):
        named = card.get("license_name")
        tag = named if isinstance(named, str) else tag if isinstance(tag, str) else ""
    return _LICENCES.get(tag.lower(), tag)


def known_licence(word: str) -> bool:
    """Say whether `licence` returned one of our identifiers, and not a card's own word."""
    return word in _LICENCES.values()


def card_facts(info: Any, repo: str) -> dict[str, Any]:
    """Return what the hub's answer says of `repo`: licence, gated, parameters, base (parents of other labs)."""
    facts: dict[str, Any] = {}
    if word := licence(info):
        facts["licence"] = word
    if isinstance(info.get("gated"), str | bool):
        facts["gated"] = bool(info["gated"])
    tensors = info.get("safetensors")
    total = tensors.get("total") if isinstance(tensors, dict) else None
    if type(total) is int and 0 < total < 10**14:
        facts["parameters"] = total
    org = repo.partition("/")[0]
    parents = [p for p in _parents(info.get("cardData")) if p.partition("/")[0] != org]
    if parents:
        facts["base"] = parents
    return facts


def config_facts(config: Any) -> dict[str, Any]:
    """Return what config.json says that the catalogue keeps; a multimodal model's text part counts."""
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")
    stated = {**config, **inner} if isinstance(inner, dict) else config
    facts = {ours: stated.get(theirs) for theirs, ours in _CONFIG.items()}
    return {k: v for k, v in facts.items() if type(v) is int and 0 < v < 1 << 31}


def _parents(card: Any) -> list[str]:
    bases = card.get("base_model") if isinstance(card, dict) else None
    named = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    return [p for p in named if isinstance(p, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", p)][:16]


_MAX_FILES = 100_000
_MAX_SIZE = 1 << 46  # 70 TB: beyond any model, within any file system's arithmetic


@dataclass(frozen=True, slots=True)
class _Remote:
    """What the hub says of one file."""

    bytes: int
    sha256: str  # of large files; empty for small ones, which git names by another hash
    blob: str


class HubSource:
    """One repository, or the one that a catalogue entry names."""

    def __init__(self, ref: Ref, settings: Settings, *, entry: Entry | None = None) -> None:
        self._ref, self._settings, self._entry = ref, settings, entry
        self._http = Http(token=settings.hub_token, token_origin=settings.hub_endpoint)

    def plan(self) -> Plan:
        """Ask the hub for the repository's files and choose among them."""
        ref, endpoint = self._ref, self._settings.hub_endpoint
        revision = quote(ref.revision, safe="")
        # with another source at hand, a hub that cannot be reached is not waited for
        tries = 1 if self._entry and self._entry.packages else MAX_TRIES
        info = self._http.get_json(f"{endpoint}/api/models/{ref.repo}/revision/{revision}?blobs=true", tries)
        commit, files = _read_info(info, ref.repo)
        if info.get("gated") and not self._settings.hub_token:
            raise self._gated("its licence has to be accepted, and no token is set")
        chosen, kind, quant = self._choose(files)
        mmproj, why = mmproj_of(chosen, files) if kind == "gguf" else ("", "")
        every = (*chosen, mmproj) if mmproj else chosen
        plan = Plan(
            name=self._name(quant),
            kind=kind,
            source=f"hub: {ref.repo}@{commit[:12]}",
            files=tuple(self._planned(path, files[path], commit, flat=kind == "gguf") for path in every),
            licence=self._known_licence() or licence(info),
            detail=_detail(kind, quant, chosen, ref) + (f"; no eyes: {why}" if why else ""),
            eyes=PurePosixPath(mmproj).name,
        )
        self._compare_with_entry(plan)
        return plan

    def fetch(self, plan: Plan, folder: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        """Fetch the plan's files one after the other, each by parallel ranges."""
        try:
            return fetch_files(self._http, plan, folder, self._settings, on_event)
        except AccessDenied as e:
            raise self._gated(e.message) from e

    def close(self) -> None:
        """Give back connections."""
        self._http.close()

    def _choose(self, files: dict[str, _Remote]) -> tuple[tuple[str, ...], str, str]:
        """Return (paths, kind, quantisation)."""
        variants = gguf_variants(files)
        if variants:
            variant = choose(variants, self._ref.quant, self._ref.repo)
            return variant.files, "gguf", variant.quant or PurePosixPath(variant.files[0]).name
        if self._ref.quant:
            raise ModelNotFound(
                f"{self._ref.repo} holds no GGUF files, so no {self._ref.quant}", self._ref.repo
            )
        if converted := ctranslate2_files(files):
            return converted, "ctranslate2", ""
        return safetensors_files(files, self._ref.repo), "safetensors", ""

    def _known_licence(self) -> str:
        known = facts(self._entry) if self._entry else None
        return known.licence if known else ""

    def _name(self, quant: str) -> str:
        if self._entry:
            return self._entry.name
        repo = self._ref.repo if self._ref.revision == "main" else f"{self._ref.repo}@{self._ref.revision}"
        return f"{repo}:{quant}" if quant else repo

    def _planned(self, path: str, remote: _Remote, commit: str, *, flat: bool) -> PlannedFile:
        url = f"{self._settings.hub_endpoint}/{self._ref.repo}/resolve/{commit}/{quote(path)}"
        name = PurePosixPath(path).name if flat else path
        return PlannedFile(
            safe_relative(name), remote.bytes, remote.sha256 or None, url, remote.sha256 or remote.blob
        )

    def _compare_with_entry(self, plan: Plan) -> None:
        known = (
            {f.sha256 for f in self._entry.files} if self._entry and self._entry.kind == plan.kind else set()
        )
        stated = {f.sha256 for f in plan.without_eyes().files if f.sha256}
        if known and stated != known:
            raise DownloadFailed(f"{self._ref.repo} holds another file than the catalogue's {plan.name}")

    def _gated(self, why: str) -> AccessDenied:
        page = f"{self._settings.hub_endpoint}/{self._ref.repo}"
        return AccessDenied(f"{self._ref.repo}: {why}", f"accept the licence at {page}, then set HF_TOKEN")


def _read_info(info: Any, repo: str) -> tuple[str, dict[str, _Remote]]:
    """Check the hub's answer; return its commit and files."""
    try:
        commit, siblings = info["sha"], info["siblings"]
        if not re.fullmatch(r"[0-9a-f]{6,64}", commit) or len(siblings) > _MAX_FILES:
            raise ValueError(f"commit {commit[:80]!r}, {len(siblings)} files")
        return commit, {str(s["rfilename"]): _remote(s) for s in siblings}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DownloadFailed(f"the hub's answer about {repo} makes no sense: {e!r}") from e


def _remote(sibling: dict[str, Any]) -> _Remote:
    lfs = sibling.get("lfs") or {}
    size = lfs.get("size", sibling.get("size"))
    sha256 = str(lfs.get("sha256", "")).lower()
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"{sibling['rfilename']!r} has size {size!r}")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{sibling['rfilename']!r} has digest {sha256[:80]!r}")
    return _Remote(size, sha256, str(sibling.get("blobId", "")))


def _detail(kind: str, quant: str, chosen: Sequence[str], ref: Ref) -> str:
    if kind == "safetensors":
        return f"{len(chosen)} files: safetensors, configuration, tokenizer"
    if kind == "ctranslate2":
        return f"{len(chosen)} files: CTranslate2's weights, configuration, tokenizer"
    why = "as asked" if ref.quant else "chosen for you; org/repo:QUANT takes another"
    shards = f", {len(chosen)} shards" if len(chosen) > 1 else ""
    return f"{quant} ({why}){shards}: {chosen[0]}"


# --- what the hub says today -----------------------------------------------------------------------

_BUFFERS = 1e-5  # of a checkpoint's tensors: tables of frequencies and the like, which are no weights
TRIES = 3  # in a row, of a hub that does not answer


@dataclass(frozen=True, slots=True)
class Change:
    """A fact of which the hub says something else than the catalogue."""

    id: str
    key: str
    known: Any
    found: Any
    source: str  # the repository and commit that said so

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Refresher:
    """Asks one hub."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def ask(self, models: Sequence[Model]) -> tuple[list[Change], list[tuple[str, str]]]:
        """Return what differs, and (id, why) of the models that could not be asked about.

        Raises Offline in offline mode, and DownloadFailed when the hub cannot be reached at all.
        """
        if self._settings.offline:
            raise Offline("offline mode forbids asking the hub", "without --offline: freehold models refresh")
        changes: list[Change] = []
        failed: list[tuple[str, str]] = []
        http = Http(token=self._settings.hub_token, token_origin=self._settings.hub_endpoint)
        with closing(http):
            for model in models:
                try:
                    changes += self._differences(http, model)
                except (AccessDenied, ModelNotFound) as e:
                    failed.append((model.id, e.message))
        return changes, failed

    def append(self, changes: Sequence[Change], path: Path) -> int:
        """Add the changes to the user's file, one dated table a model; return their number.

        The file is written beside and renamed. Raises StoreError if it is damaged already.
        """
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        parse(str(path), before)
        tables = [_table([c for c in changes if c.id == id]) for id in dict.fromkeys(c.id for c in changes)]
        text = "\n".join([*([before.rstrip() + "\n"] if before.strip() else []), *tables])
        if len(text.encode()) > MAX_BYTES:
            raise StoreError(
                f"{path} would hold more than {MAX_BYTES:,} bytes", "drop what is older than what you need"
            )
        parse(str(path), text)
        private.folder(path.parent)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with open(aside, "w", encoding="utf-8", opener=private.opener) as file:
                file.write(text)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return len(changes)

    def _differences(self, http: Http, model: Model) -> list[Change]:
        endpoint = self._settings.hub_endpoint
        info = http.get_json(f"{endpoint}/api/models/{model.id}/revision/main", TRIES)
        commit = info.get("sha", "") if isinstance(info, dict) else ""
        if not re.fullmatch(r"[0-9a-f]{6,64}", str(commit)):
            raise DownloadFailed(f"the hub's answer about {model.id} names no commit")
        facts = card_facts(info, model.id)
        if "parameters" in facts and not model.params_b:
            facts["params_b"] = round(facts["parameters"] / 1e9, 3)
        # a gated repository, or one with files of another kind: its card has to do
        with suppress(AccessDenied, ModelNotFound):
            config = f"{endpoint}/{model.id}/resolve/{commit}/config.json"
            read = http.get_json(config, TRIES)
            facts |= config_facts(read) | text_half(read, facts.get("parameters", 0))
        source = f"hub: {model.id}@{commit[:12]}"
        return [
            Change(model.id, key, known, value, source)
            for key, value in facts.items()
            if _differs(key, known := _plain(getattr(model, key)), value)
        ]


def text_half(config: Any, whole: int) -> dict[str, int]:
    """Return the count of a model's text half, where its configuration can be counted and files hold more."""
    if not isinstance(config, dict):
        return {}
    try:
        count_found = count(config).total
    except UnsupportedModel:
        return {}
    return {"text_parameters": count_found} if 0 < count_found < whole * (1 - _BUFFERS) else {}


def _differs(key: str, known: Any, current: Any) -> bool:
    if key == "licence" and known and not known_licence(current):
        return False  # a name of the card's own contradicts nothing that was read in the text
    if key == "context" and known:
        return current > known  # a longer context reached by scaling is in the card, not in config.json
    return known != current


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _table(changes: Sequence[Change]) -> str:
    """Write one model's changes as TOML."""
    lines = ["[[model]]", f"id = {json.dumps(changes[0].id)}"]
    for change in changes:
        value = _as_licence(change.found) if change.key == "licence" else change.found
        lines.append(f"{change.key} = {json.dumps(value, ensure_ascii=False)}")
    sources = json.dumps(list(dict.fromkeys(c.source for c in changes)))
    return "\n".join([*lines, f"sources = {sources}", f"checked = {date.today().isoformat()}", ""])


def _as_licence(word: str) -> str:
    """Make an identifier of a card's own word; its terms are unknown, and so it blocks."""
    if known_licence(word):
        return word
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", word).strip("-")[:80]
