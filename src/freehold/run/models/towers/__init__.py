"""The registry of towers, one file each: a tower's config from both formats, its parts, and the arithmetic of sizes.

A module of this room with a TOWER is registered by being here.
Path: read_tower -> of_projector, of_model_type -> Tower; LoadedTower and TowerOracle run its network
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from freehold.run.models.tower import Tower


@cache
def registered() -> tuple[Tower, ...]:
    """Return every tower."""
    names = sorted(module.name for module in iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").TOWER for name in names)


def of_projector(name: str) -> Tower | None:
    """Return the tower that a GGUF's clip.projector_type names, if there is one."""
    return next((tower for tower in registered() if name in tower.projectors), None)


def of_model_type(name: str, hears: bool = False) -> Tower | None:
    """Return the tower of the models that a config.json's model_type names, if there is one; `hears`: of sounds."""
    return next((tower for tower in registered() if name in tower.model_types and tower.hears is hears), None)
