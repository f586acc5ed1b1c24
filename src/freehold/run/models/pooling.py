"""How a folder of sentence-transformers files makes one vector of a text's activations.

Knows modules.json and the pooling module's config.json; knows no model and no arithmetic. What is not computed is
refused: a further layer after the pooling would change every vector.
"""

from __future__ import annotations

from pathlib import Path

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.tokenizer.directory import read_json, read_json_list

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


def pooling_from_dir(folder: Path, default: str) -> str:
    """Return "mean", "last" or "cls"; `default` where the folder says nothing. Raises UnsupportedModel."""
    modules = read_json_list(folder / "modules.json")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules if isinstance(m, dict)]
    strange = [kind for kind in kinds if kind not in _MODULES]
    if strange:
        raise UnsupportedModel(
            f"{folder.name} makes embeddings with a module of type {strange[0][:60]!r}",
            f"supported: {', '.join(_MODULES)}",
        )
    places = [str(m.get("path", "")) for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    if not places:
        return default
    path = folder / places[0]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadModelFile(
            f"modules.json of {folder.name} names a path outside its folder: {places[0][:60]!r}"
        )
    return _mode(read_json(path / "config.json"), default)


def _mode(config: dict[str, object], default: str) -> str:
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")  # as newer files write it
    if isinstance(named, str):
        modes = [next((key for key, mode in _MODES.items() if mode == named), f"pooling_mode_{named}")]
    unknown = [key for key in modes if key not in _MODES]
    if unknown or len(modes) > 1:
        raise UnsupportedModel(
            f"the model pools by {', '.join(key[:60] for key in modes)}",
            f"supported: one of {', '.join(_MODES)}",
        )
    return _MODES[modes[0]] if modes else default
