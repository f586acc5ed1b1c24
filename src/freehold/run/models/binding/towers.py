"""A tower's file in, bound tensors out: the tower is found by what the file names, and its config is read.

A folder of safetensors holds a tower beside the text half; of GGUFs it has a file of its own, of the architecture
`clip`. Knows the registry of towers; reads no weight, packs nothing, and knows no text model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats import GGUFFile, ModelFile, SafetensorsFile, Tensor
from freehold.run.formats.fields import Fields
from freehold.run.formats.safetensors import side_json
from freehold.run.models.binding.bind import BoundFile
from freehold.run.models.binding.binder import Binder
from freehold.run.models.tower import Tower, TowerNetwork
from freehold.run.models.towers import of_model_type, of_projector, registered

ARCHITECTURE = "clip"  # of every GGUF that holds a tower


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSource(BoundFile):
    """A tower whose config is known and whose tensors are bound to the declared weights."""

    tower: Tower
    cfg: Any  # the tower's config, a TowerSizes
    network: TowerNetwork


def read_tower(opened: ModelFile, hears: bool = False) -> TowerSource | None:
    """Find the tower of an open file, read its config and bind its tensors; no weight is read yet.

    `hears`: the tower of sounds, where there are two. None for a file without one: a GGUF of text, or a folder of a
    model of text alone, or of text's weights alone.
    Raises UnsupportedModel for a tower that is not known, BadModelFile for one that is damaged.
    """
    return _read_gguf(opened, hears) if isinstance(opened, GGUFFile) else _read_hf(opened, hears)


SOUND = ("a.", "mm.a.")  # what tensors of a tower of sound begin with


def _read_gguf(opened: GGUFFile, hears: bool) -> TowerSource | None:
    meta = opened.metadata
    if meta.get("general.architecture") != ARCHITECTURE:
        return None
    keys = Fields(meta, f"{ARCHITECTURE}.")
    projector = _projector(keys, hears)
    if not projector:
        return None
    tower = of_projector(projector)
    if tower is None or tower.hears is not hears:
        known = ", ".join(sorted(n for each in registered() if each.hears is hears for n in each.projectors))
        raise UnsupportedModel(
            f"{opened.path} is an encoder of the type {projector[:60]!r}, which is not supported yet",
            f"supported types: {known}",
        )
    tensors = {
        name: tensor for name, tensor in opened.tensors.items() if name.startswith(SOUND) is tower.hears
    }
    counted = {
        keys.name(key): tensors[name].shape[0]
        for key, name in tower.rows_of.items()
        if name in tensors and len(tensors[name].shape) in (1, 2)
    }
    cfg = tower.config_from_gguf(Fields({**meta, **counted}, f"{ARCHITECTURE}."))
    return _bound(opened.path, tower, cfg, Binder(tensors, tower.gguf_layers), ())


def _projector(keys: Fields, hears: bool) -> str:
    """Return the kind of tower that a GGUF names; "" for a file without one of that sense."""
    both = keys.text("projector_type", "")
    alone = keys.flag("has_audio_encoder", False) and not keys.flag("has_vision_encoder", False)
    if hears:
        return keys.text("audio.projector_type", "") or (both if alone else "")
    if alone:
        return ""
    return both or keys.text("vision.projector_type")


def _read_hf(opened: SafetensorsFile, hears: bool) -> TowerSource | None:
    config = Fields(opened.config)
    tower = of_model_type(config.text("model_type", ""), hears)
    tensors = {} if tower is None else _own(tower, opened.tensors)
    if tower is None or not tensors:
        return None
    settings = sound_settings(opened.path) if hears else pixel_settings(opened.path)
    return _bound(
        Path(opened.path), tower, tower.config_from_hf(config, settings), Binder(tensors, tower.hf_layers), ()
    )


def _own(tower: Tower, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {own: tensor for name, tensor in tensors.items() if (own := tower.hf_name(name))}


def sound_settings(path: Path) -> Fields:
    """Return what the folder of a model says of sound: processor_config.json's section, or preprocessor_config.json.

    A preprocessor_config.json of pictures says nothing of it.
    """
    folder = path if os.path.isdir(path) else path.parent
    section = Fields(side_json(folder / "processor_config.json")).section("feature_extractor")
    beside = Fields(side_json(folder / "preprocessor_config.json"))
    return section or (beside if beside.text("feature_extractor_type", "") else Fields({}))


def pixel_settings(path: Path) -> Fields:
    """Return what the folder of a model says of pixels: processor_config.json's section, or preprocessor_config.json.

    The section wins, as in transformers; nothing is said where there is neither file.
    """
    folder = path if os.path.isdir(path) else path.parent
    section = Fields(side_json(folder / "processor_config.json")).section("image_processor")
    return section or Fields(side_json(folder / "preprocessor_config.json"))


def _bound(path: Path, tower: Tower, cfg: Any, binder: Binder, notes: tuple[str, ...]) -> TowerSource:
    network = tower.network(cfg)
    ends = binder.take(network.ends.tensors() | network.merger.tensors())
    layers = tuple(binder.take(layer.tensors(), i) for i, layer in enumerate(network.layers))
    binder.refuse_rest()
    return TowerSource(
        path=path,
        name=path.stem or path.name,
        ends=ends,
        layers=layers,
        gguf=binder.gguf,
        notes=notes,
        tower=tower,
        cfg=cfg,
        network=network,
    )
