"""Facts of a model's file for tags, ps and show: read once, and again when the file changes.

Knows model files and the facts that clients show; knows no route and no engine. A file that cannot be read has an
empty card, so that a list of models does not fail.
Path: models.py -> Cards.of -> open_model_file -> Card
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freehold import private
from freehold.errors import FreeholdError
from freehold.formats import GGUFFile, ModelFile, open_model_file
from freehold.formats.detect import quantization_of
from freehold.store import Listed
from freehold.store.manifest import write_json
from freehold.store.sampling import sampling_defaults
from freehold.tokenizer.directory import read_json
from freehold.tokenizer.fill import SPELLINGS
from freehold.tokenizer.template import ChatTemplate, templates_from_dir, templates_from_gguf
from freehold.version import __version__

MAX_CARDS = 512
MAX_VALUE = 16_384  # characters of a text in model_info; licences and templates have fields of their own
_ENCODERS = ("bert", "nomic-bert", "jina-bert-v2", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True)
class Card:
    """Facts of one file; empty and 0 where it does not tell."""

    format: str = ""  # gguf | safetensors
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    context: int = 0
    embedding: int = 0
    template: str = ""
    licence: str = ""
    capabilities: tuple[str, ...] = ()
    info: Mapping[str, object] = field(default_factory=dict)
    sampling: Mapping[str, object] = field(default_factory=dict)
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    is_whole: bool = True  # False: there was no time to look for what its template makes possible


class Cards:
    """Cards by file, a bounded number of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], Card] = {}

    def of(self, listed: Listed, home: Path, until: float = math.inf) -> Card:
        """Return a model's card; reads the disk, and keeps below `home` what its template makes possible.

        After `until`, of time.monotonic(), no template is rendered: what is not known then is left out of the card.
        """
        try:
            stat = listed.path.stat()
            key = (listed.path, stat.st_size, stat.st_mtime_ns)
            if key not in self._known:
                if len(self._known) >= MAX_CARDS:
                    self._known.clear()
                with open_model_file(listed.path) as file:
                    card = read_card(file, listed.path, home, until)
                if not card.is_whole:
                    return card
                self._known[key] = card
            return self._known[key]
        except (FreeholdError, OSError):
            return Card()


def read_card(file: ModelFile, path: Path, home: Path, until: float = math.inf) -> Card:
    """Read what a file tells, and what its template makes possible, unless it is too late to render."""
    tensors = list(file.tensors.values())
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.nbytes
    gguf = isinstance(file, GGUFFile)
    file_card = _gguf_said(file) if isinstance(file, GGUFFile) else _folder_said(file, path)
    parameters = sum(math.prod(t.shape) for t in tensors)
    info = {"general.parameter_count": parameters, **file_card.info}
    capabilities, is_whole = _capabilities(file_card, home, until)
    sampling = (
        {} if file_card.architecture in _ENCODERS else sampling_defaults(file)
    )  # encoders make no tokens
    return Card(
        format="gguf" if gguf else "safetensors",
        architecture=file_card.architecture,
        parameters=parameters,
        quantization=quantization_of(file, dict(by_type.most_common())),
        context=file_card.context,
        embedding=file_card.embedding,
        template=file_card.template,
        licence=str(info.get("general.license", "")) if gguf else "",
        capabilities=capabilities,
        info=info,
        sampling={name: value for name, (value, _) in sampling.items()},
        tensors=tuple((t.name, t.type.name, tuple(t.shape)) for t in tensors),
        is_whole=is_whole,
    )


@dataclass(frozen=True, slots=True)
class _FileCard:
    """What the two kinds of file tell in different places."""

    architecture: str
    context: int
    embedding: int
    template: str
    can_fill: bool
    pools: bool  # it says how a text becomes one vector: it was made for that
    info: Mapping[str, object]


def _gguf_said(file: GGUFFile) -> _FileCard:
    name, metadata = file.architecture, file.metadata
    tokens = set(metadata.get_strings("tokenizer.ggml.tokens", []))
    return _FileCard(
        architecture=name,
        context=metadata.get_int(f"{name}.context_length", 0),
        embedding=metadata.get_int(f"{name}.embedding_length", 0),
        template=templates_from_gguf(metadata).get("default", ""),
        can_fill=any(tokens.issuperset(spelled) for spelled in SPELLINGS),
        pools=metadata.get_int(f"{name}.pooling_type", 0) > 0,
        info={k: _plain(v) for k, v in metadata.items() if not k.startswith("tokenizer.chat_template")},
    )


def _folder_said(file: Any, path: Path) -> _FileCard:
    """Tell the same of a folder of safetensors, under the names GGUF has."""
    config = file.config
    name = str(config.get("model_type", ""))
    context, width = config.get("max_position_embeddings", 0), config.get("hidden_size", 0)
    added = read_json(path / "tokenizer.json").get("added_tokens", [])
    tokens = {str(t.get("content")) for t in added if isinstance(t, dict)}
    return _FileCard(
        architecture=name,
        context=context if isinstance(context, int) else 0,
        embedding=width if isinstance(width, int) else 0,
        template=templates_from_dir(path).get("default", ""),
        can_fill=any(tokens.issuperset(spelled) for spelled in SPELLINGS),
        pools=(path / "modules.json").is_file(),
        info={
            "general.architecture": name,
            f"{name}.context_length": context,
            f"{name}.embedding_length": width,
        },
    )


def _plain(value: object) -> object:
    """Return what JSON may hold of a metadata value; null stands for a list, as in Ollama's short answers."""
    if isinstance(value, bool | int | str):
        return value if not isinstance(value, str) or len(value) <= MAX_VALUE else None
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return None


def _capabilities(file_card: _FileCard, home: Path, until: float) -> tuple[tuple[str, ...], bool]:
    """Return what a model can do, and whether that is all.

    Any decoder makes embeddings; only one that was made for it says so, because clients that choose a model for a chat
    leave those out that do.
    """
    if file_card.architecture in _ENCODERS:
        return ("embedding",), True
    abilities = of_template(file_card.template, home, until)
    able = {
        "completion": True,
        "insert": file_card.can_fill,
        **(abilities or {}),
        "embedding": file_card.pools,
    }
    return tuple(name for name, has in able.items() if has), abilities is not None


# --- capabilities of chat templates, found by rendering each template once and stored below the home
#     <home>/templates/<digest>.json     of the template's text and this version of Freehold
# A listing asks for every model there is, and rendering is work on a stranger's file. One that never ends is
# found out once, by the process that renders, and is recorded as making nothing possible.

MAX_KEPT = 2048  # records of 40 bytes; as many as other programs' folders may hold models
NAMES = ("tools", "thinking")


def of_template(source: str, home: Path, until: float = math.inf) -> dict[str, bool] | None:
    """Tell for each of NAMES whether a template makes it possible; nothing without a template.

    None where no record tells and time.monotonic() is past `until`: rendering may take seconds.
    """
    if not source:
        return {}
    digest = hashlib.sha256(f"{__version__}\n{source}".encode("utf-8", "surrogatepass")).hexdigest()
    path = home / "templates" / f"{digest}.json"
    kept = _kept(path)
    if kept is None and time.monotonic() > until:
        return None
    return kept or _keep(path, _read_abilities(source))


def _read_abilities(source: str) -> dict[str, bool]:
    template = ChatTemplate(source)
    return {
        "tools": template.can_call,
        "thinking": template.thinking != "none" or bool(template.efforts),
    }


def _kept(path: Path) -> dict[str, bool] | None:
    with suppress(OSError, ValueError):
        kept = json.loads(path.read_bytes())
        if isinstance(kept, dict) and all(isinstance(kept.get(name), bool) for name in NAMES):
            return {name: kept[name] for name in NAMES}
    return None


def _keep(path: Path, abilities: dict[str, bool]) -> dict[str, bool]:
    """Write a record, and drop the oldest where there are too many; a home that cannot be written is ignored."""
    with suppress(OSError):
        private.folder(path.parent)
        write_json(path, abilities, durable=False)
        records = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in records[:-MAX_KEPT]:
            old.unlink()
    return abilities
