"""The registry of model families, one file each: an architecture's config from both formats, and its layers' parts.

A module of this room with a FAMILY, or FAMILIES where one file serves several, is registered by being here.
"""

from importlib import import_module
from pkgutil import iter_modules

from freehold.models.family import Family


def _families() -> tuple[Family, ...]:
    found: list[Family] = []
    for each in sorted(module.name for module in iter_modules(__path__)):
        module = import_module(f"{__name__}.{each}")
        found += getattr(module, "FAMILIES", None) or (module.FAMILY,)
    return tuple(found)


FAMILIES: tuple[Family, ...] = _families()
