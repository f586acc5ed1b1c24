"""The tower beside a GGUF model: an mmproj file, which one it is and whether the two fit. And which models hear.

Knows names and what both headers say: widths, base models, whether a tower sees. Knows no arithmetic of a tower:
whether Freehold computes it, and for which family, is decided where it is loaded (models/seeing.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel, UsageError
from freehold.run.store.manifest import SPEECH_KINDS, HeldFile, Manifest
from freehold.run.store.quants import is_mmproj, mmproj_of

if TYPE_CHECKING:
    from freehold.run.formats import Metadata, Tensor
    from freehold.run.store.records import Listed, ModelRef

ARCHITECTURE = "clip"  # what every mmproj says it is
MAX_BESIDE = 64  # mmproj files of a user's folder whose headers are read
_MAX_BASES = 16
# Projectors of the first converters, and one made of Mistral's own form (an MLP's width), which state another width
# than their features have: the last matrix tells it.
_STATED_OTHERWISE = ("", "mlp", "mlp_norm", "ldp", "ldpv2", "adapter", "resampler", "pixtral")
_LAST_MATRICES = ("mm.model.mlp.3", "mm.model.mlp.2", "mm.model.fc", "mm.2", "mm.1", "mm.0", "resampler.proj")


# Kinds of towers of sound that Freehold runs (models/towers); a file with another one alone is left out.
_HEARD = ("gemma4a", "gemma4ua", "voxtral")


@dataclass(frozen=True, slots=True)
class _Header:
    """What a model or an mmproj says of itself. `width`: columns of a token's row, or of a feature; 0 if not stated."""

    width: int
    names: frozenset[str]  # its own and its base models', as letters and digits alone
    bases: bool  # whether base models are among them
    sees: bool = False  # of an mmproj: it has a vision tower, and not one for sound alone
    hears: bool = False  # the same: a tower of sound that Freehold runs


@dataclass(frozen=True, slots=True)
class TowerBeside:
    """The tower beside a file of the user's own, or why none is taken where mmproj files are there.

    `undecided`: some fit, and no name tells which is meant.
    """

    eyes: HeldFile | None = None
    why: str = ""
    undecided: bool = False


def misfit(model: Path, mmproj: Path) -> str:
    """Return why `mmproj` is not the tower of `model`, a GGUF file or the first of its shards; empty: it may be.

    Compares the width of features with the width of the model's rows, and the base models where both files name some.
    An unreadable model is not judged: loading reports it.
    """
    try:
        tower = _tower(mmproj)
    except (FreeholdError, OSError) as e:
        return e.message if isinstance(e, FreeholdError) else f"{mmproj} cannot be read: {e.strerror}"
    if not tower.sees and not tower.hears:
        return _no_vision(mmproj)
    try:
        text = _text(model)
    except (FreeholdError, OSError):
        return ""
    if tower.width and text.width and tower.width != text.width:
        return (
            f"{mmproj.name} belongs to another model: its features have {tower.width:,} columns, "
            f"but {model.name} expects {text.width:,}"
        )
    if tower.bases and text.bases and not tower.names & text.names:
        return f"{mmproj.name} belongs to another model: it names other base models than {model.name}"
    return ""


def model_and_tower(one: Path, other: Path) -> tuple[Path, Path]:
    """Return which of two GGUF files is the model and which its tower, in either order.

    Raises UsageError for two of a kind and for a tower of another model, BadModelFile for a file of another kind.
    """
    towers = [is_tower(path) for path in (one, other)]
    if towers[0] == towers[1]:
        what = "encoders (mmproj files)" if towers[0] else "models"
        raise UsageError(
            f"both files are {what}; expected a model and its encoder",
            "an encoder is a GGUF file with mmproj in its name",
        )
    model, tower = (other, one) if towers[0] else (one, other)
    if why := misfit(model, tower):
        raise UsageError(why, "use the mmproj file that was published with the model")
    return model, tower


def is_tower(path: Path) -> bool:
    """Return whether a GGUF file holds a tower and no model of text. Raises BadModelFile for a file of another kind."""
    from freehold.run.formats import open_gguf

    with open_gguf(path) as file:
        return file.architecture == ARCHITECTURE


def has_tower(model: Listed) -> bool:
    """Return whether a vision tower comes with a model: the file beside a GGUF fits it, or a folder states one.

    Whether Freehold computes it with this model is known where it is loaded. Raises what opening the files raises.
    """
    from freehold.run.formats.safetensors import side_json

    if model.kind == "gguf":
        return model.eyes is not None and not misfit(model.path, model.eyes) and _tower(model.eyes).sees
    folder = model.path if model.path.is_dir() else model.path.parent
    return isinstance(side_json(folder / "config.json").get("vision_config"), dict)


def hears(model: ModelRef | Listed) -> bool:
    """Return whether a model writes down recordings and does not chat, by its kind or its folder's config.json.

    Raises what opening the file raises.
    """
    from freehold.run.formats.safetensors import side_json

    if model.kind in SPEECH_KINDS:
        return True
    if model.kind != "safetensors" or not model.path.is_dir():
        return False
    return side_json(model.path / "config.json").get("model_type") == "whisper"


def check_answers(model: ModelRef) -> None:
    """Raise UnsupportedModel for a model that writes down recordings and does not chat."""
    if hears(model):
        raise speech_alone(model.name)


def speech_alone(name: str) -> UnsupportedModel:
    """Build the error for a speech model where one that answers is needed."""
    return UnsupportedModel(
        f"{name} is a speech model: it writes down recordings and does not chat",
        f"freehold transcribe FILE --model {name}",
    )


def has_ears(model: Listed) -> bool:
    """Return whether a tower of sounds comes with a model, as has_tower says of pictures."""
    from freehold.run.formats import open_gguf
    from freehold.run.formats.safetensors import side_json

    if model.kind == "gguf":
        if model.eyes is None or misfit(model.path, model.eyes):
            return False
        with open_gguf(model.eyes) as file:
            return file.metadata.get_bool("clip.has_audio_encoder", False)
    folder = model.path if model.path.is_dir() else model.path.parent
    return isinstance(side_json(folder / "config.json").get("audio_config"), dict)


def hears_only(mmproj: Path) -> bool:
    """Return whether a file is a tower for sound alone, and none that runs. Raises what opening a GGUF file raises."""
    tower = _tower(mmproj)
    return not tower.sees and not tower.hears


def beside(model: Path) -> TowerBeside:
    """Look for the tower of a user's own GGUF file among the mmproj files in its folder.

    Those that do not fit are passed over. What is left is one tower, of which the best type is taken, or its name
    decides.
    """
    try:
        with os.scandir(model.parent) as entries:
            near = sorted(e.name for e in entries if is_mmproj(e.name) and e.name.lower().endswith(".gguf"))
    except OSError:
        return TowerBeside()
    if not near or is_mmproj(model.name):
        return TowerBeside()
    if len(near) > MAX_BESIDE:
        return TowerBeside(
            why=f"{model.parent} has {len(near)} mmproj files; at most {MAX_BESIDE} are compared"
        )
    why = {name: misfit(model, model.with_name(name)) for name in near}
    fitting = [name for name in near if not why[name]]
    if not fitting:
        return TowerBeside(
            why=why[near[0]] if len(near) == 1 else f"none of {len(near)} mmproj files next to it fits"
        )
    chosen, reason = mmproj_of([model.name], fitting)
    if not chosen:
        return TowerBeside(why=reason, undecided=True)
    path = model.with_name(chosen)
    stat = path.stat()
    return TowerBeside(HeldFile(str(path), stat.st_size, "", stat.st_mtime_ns))


def foreign_eyes(manifest: Manifest) -> TowerBeside:
    """Return the tower that lies beside a file of another program or the user, or why it is not used.

    A tower for sound is none, and needs no reason.
    """
    if manifest.eyes is None:
        return TowerBeside()
    path = Path(manifest.eyes.path)
    if not path.is_file():
        return TowerBeside(why=f"file vanished: {path}")
    if why := misfit(Path(manifest.files[0].path), path):
        return TowerBeside(why="" if why == _no_vision(path) else why)
    return TowerBeside(manifest.eyes)


def _no_vision(mmproj: Path) -> str:
    return f"{mmproj.name} has no vision encoder"


def _text(path: Path) -> _Header:
    stat = path.stat()
    return _text_of(path, stat.st_size, stat.st_mtime_ns)


def _tower(path: Path) -> _Header:
    stat = path.stat()
    return _tower_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _text_of(path: Path, size: int, mtime_ns: int) -> _Header:
    """Read a model's header; its vocabulary is read with it, so once for each version of the file."""
    from freehold.run.formats import open_gguf  # NumPy comes with it

    with open_gguf(path) as file:
        width = file.metadata.get_int(f"{file.architecture}.embedding_length", 0)
        return _Header(width, *_names(file.metadata))


@lru_cache(maxsize=256)
def _tower_of(path: Path, size: int, mtime_ns: int) -> _Header:
    from freehold.run.formats import open_gguf

    with open_gguf(path) as file:
        if file.architecture != ARCHITECTURE:
            raise BadModelFile(
                f"{path.name} is not a vision encoder: its architecture is {file.architecture[:40]!r}, "
                f"expected {ARCHITECTURE!r}"
            )
        keys = file.metadata
        projector = keys.get_str("clip.projector_type", "") or keys.get_str("clip.vision.projector_type", "")
        width = keys.get_int("clip.vision.projection_dim", 0)
        if projector in _STATED_OTHERWISE or width <= 0:
            width = _rows_of_last(file.tensors)
        heard = keys.get_str("clip.audio.projector_type", "") or projector
        hears = keys.get_bool("clip.has_audio_encoder", False) and heard in _HEARD
        if not (sees := _sees(keys)) and hears:
            width = keys.get_int("clip.audio.projection_dim", 0)
        return _Header(width, *_names(keys), sees, hears)


def _rows_of_last(tensors: Mapping[str, Tensor]) -> int:
    """Return the rows of a merger's last matrix, which are the columns of a feature; 0 where no name is known."""
    last = next((tensors[f"{name}.weight"] for name in _LAST_MATRICES if f"{name}.weight" in tensors), None)
    return last.shape[0] if last is not None and len(last.shape) == 2 else 0


def _sees(keys: Metadata) -> bool:
    if keys.get_bool("clip.has_vision_encoder", False):
        return True
    return not keys.get_bool("clip.has_audio_encoder", False) and any(
        k.startswith("clip.vision.") for k in keys
    )


def _names(keys: Metadata) -> tuple[frozenset[str], bool]:
    """Return the names of a file and of its base models, and whether it names base models at all."""
    bases = range(min(keys.get_int("general.base_model.count", 0), _MAX_BASES))
    of_bases = {keys.get_str(f"general.base_model.{i}.name", "") for i in bases}
    addresses = (keys.get_str(f"general.base_model.{i}.repo_url", "") for i in bases)
    of_bases |= {address.rstrip("/").rpartition("/")[2] for address in addresses}
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in of_bases} - {""}
    own = re.sub(r"[^a-z0-9]", "", keys.get_str("general.name", "").lower())
    return frozenset(plain | {own} - {""}), bool(plain)
