"""Models on this machine, before one is loaded: whether the engine runs it, what memory its weights take, its files.

Knows the catalogue's structures, files' headers, the registry of families and the store; reads no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from freehold.base import catalog
from freehold.base.catalog.model import Model
from freehold.base.config import load_settings
from freehold.base.errors import FreeholdError, ModelNotFound, UnsupportedModel
from freehold.run.store import Listed, ModelRef, Store
from freehold.run.store.eyes import speech_alone
from freehold.run.store.progress import ProgressLike, watching
from freehold.run.store.refs import Ref, parse_ref

if TYPE_CHECKING:
    from freehold.run.formats import ModelFile


def check_fetch(store: Store, model: str, *, speech: bool | None = None) -> None:
    """Raise what check_runs raises for a model that is not here; one that is here needs no fetching.

    A file of the user's own is read as far as loading reads it before its weights: BadModelFile and UnsupportedModel
    say what it is instead of a model.
    """
    if parse_ref(model).kind == "path":
        return _check_file(store.resolve(model).path)
    try:
        store.resolve(model)
    except ModelNotFound:
        check_runs(model, speech=speech)
    except FreeholdError:  # its file vanished: fetching brings it back
        return None


def check_runs(model: str, *, speech: bool | None = None) -> None:
    """Raise UnsupportedModel for a model of the catalogue that no family computes, ModelNotFound for an unknown name.

    `speech`: whether it is to write down recordings; a model for the other is refused too. None: either will do.
    A file, an address, and a repository that the catalogue does not know decide for themselves when they are read.
    """
    ref = parse_ref(model)
    if ref.kind in ("path", "url"):
        return
    known = catalog.of_repository(ref.repo) if ref.kind == "hub" else _of_name(ref)
    if known is not None and known.architecture:
        _check(known)
    if known is not None and speech is not None and speech != (known.role == "transcriber"):
        raise (
            speech_alone(model)
            if not speech
            else UnsupportedModel(
                f"{known.id} does not write down recordings",
                "freehold models --role transcriber lists models that do",
            )
        )


def _of_name(ref: Ref) -> Model | None:
    """Return what a short name leads to; one of the catalogue that has no short name is refused, or its id named."""
    try:
        return catalog.facts(catalog.find(ref.text))
    except ModelNotFound as missing:
        known = None
        with suppress(ModelNotFound):
            known = catalog.model(ref.text)
        if known is None or not known.hub:
            raise
        if known.architecture:
            _check(known)
        raise ModelNotFound(missing.message, f"{known.id} has no short name: write the whole id") from None


def _check_file(path: Path) -> None:
    from freehold.run.formats import open_model_file
    from freehold.run.models.binding.bind import read_source

    with open_model_file(path) as opened:
        check_architecture(opened)
        read_source(opened)


def _check(known: Model) -> None:
    from freehold.run.models.binding.bind import check_structure

    try:
        check_structure(known.structure)
    except UnsupportedModel as e:
        raise UnsupportedModel(f"{known.id}: {e.message}", e.hint) from None


def unrunnable(path: Path) -> str:
    """Return why the engine refuses the architecture of a file or folder, by its header; empty: it does not."""
    from freehold.run.formats import open_model_file

    try:
        with open_model_file(path) as opened:
            check_architecture(opened)
    except UnsupportedModel as e:
        return e.message
    except (FreeholdError, OSError):
        return ""  # a damaged file says so when it is loaded
    return ""


def check_architecture(opened: ModelFile) -> None:
    """Raise UnsupportedModel for a file whose architecture no family computes, whatever else is strange in it."""
    from freehold.run.formats import GGUFFile
    from freehold.run.models.binding.bind import family_of, gguf_family
    from freehold.run.models.binding.mistral_names import is_mistral

    if isinstance(opened, GGUFFile):
        gguf_family(opened.metadata)
    elif opened.config and not is_mistral(opened.config, opened.params):
        family_of(opened.config)


def weight_bytes(path: Path, rounding: str) -> int:
    """Return the bytes of weights in memory that a rounding makes of a model's file; 0 where it cannot be read."""
    from freehold.run.formats import open_model_file
    from freehold.run.models.binding.bind import read_source
    from freehold.run.models.packing.packer import Rounding, packed_sizes, rounded_types

    try:
        with open_model_file(path) as opened:
            source = read_source(opened)
            return sum(packed_sizes(source, rounded_types(source, cast(Rounding, rounding))).values())
    except (FreeholdError, OSError):  # loading reports it
        return 0


# --- the models on this machine, from Python -------------------------------------------------------


def pull(
    model: str,
    *,
    quant: Literal["q8", "q6", "q4", "none"] | None = None,
    eyes: bool | None = None,
    progress: ProgressLike = None,
) -> ModelRef:
    """Download a model, or add it where another program stores it; `load` opens the result's `path`.

    `quant`: the type to which the float weights of safetensors are rounded when they are packed; stored with the model.
    `eyes`: whether to download the vision encoder (mmproj) of a GGUF; None: if the repository has one. `progress`: None
    shows a bar in a terminal and a line in a notebook; True also prints lines elsewhere; False prints nothing; a
    function gets each event of the pull. The same call resumes an interrupted pull. Raises UnsupportedModel before
    anything is downloaded,
    ModelNotFound, AccessDenied, DownloadFailed, CapacityExceeded, Offline.
    """
    rounding = "" if quant == "none" else quant
    store = Store(load_settings())
    check_fetch(store, model)
    with watching(progress) as on_event:
        return store.pull(model, on_event, rounding, eyes)


def list() -> Sequence[Listed]:
    """Return the models on this machine, sorted by name, with unfinished pulls and those of other programs."""
    return Store(load_settings()).list()
