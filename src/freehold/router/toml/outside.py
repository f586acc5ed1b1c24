"""What gateway.toml refers to outside itself: environment variables, the keyring, stored models, the price table.

Passed in, so that tests and `freehold gateway check` choose their own. Knows no rule of the file.
Path: cli/serve.py -> Outside -> reading.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.providers.contract import Kind
from freehold.router.price import Price

EXTRA = "pip install 'freehold[gateway]' brings it"


def _from_keyring(name: str) -> str | None:
    """Return a password of the service `freehold` in the system's keyring; None: there is none, or no keyring."""
    try:
        import keyring
    except ImportError:
        return None
    try:
        return keyring.get_password("freehold", name)
    except Exception:  # each system's keyring has errors of its own, and none of them gives a key
        return None


def _listed(kind: Kind, model: str) -> Price | None:
    from freehold.router.prices import resolve  # the table takes half a second to load

    return resolve(kind, model)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where names in the file lead. `has_model` None: not looked up."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    keyring: Callable[[str], str | None] = _from_keyring
    price_of: Callable[[Kind, str], Price | None] = _listed
    has_model: Callable[[str], bool] | None = None  # whether this machine's store holds it
    offline: bool = False  # the user forbids calls beyond private addresses
    folder: Path = Path()  # that relative paths of the file begin at
