"""What gateway.toml refers to outside itself: environment variables, the keyring, stored models, the price table.

Passed in, so that tests and `freehold gateway check` choose their own. Knows no rule of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.route.providers.contract import Kind
from freehold.route.router.price import Price

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
    from freehold.route.router.price import resolve  # the table takes half a second to load

    return resolve(kind, model)


def _sold(seller: str, model: str) -> Price | None:
    from freehold.route.router.price import resolve_at

    return resolve_at(seller, model)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where names in the file lead. `has_model` None: not looked up."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    keyring: Callable[[str], str | None] = _from_keyring
    price_of: Callable[[Kind, str], Price | None] = _listed
    price_at: Callable[[str, str], Price | None] = _sold  # seller of the table, model
    has_model: Callable[[str], bool] | None = None  # whether this machine's store holds it
    offline: bool = False  # the user forbids calls beyond private addresses
    folder: Path = Path()  # that relative paths of the file begin at


# --- the environment as gateway.toml reads it -------------------------------------------------------
# Variables that hold a key are taken out of the process's own.
# So no engine, scorer or other child process is given a provider's key, and /proc/PID/environ does not show
# it. Knows names of variables; prints no value.


class KeptEnvironment(Mapping[str, str]):
    """A view of the environment that remembers which variables were read, and can hide them."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._kept: dict[str, str] = {}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        value = self._environ[name] if name in self._environ else self._kept[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._environ or name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter({**self._kept, **self._environ})

    def __len__(self) -> int:
        return len({**self._kept, **self._environ})

    def __repr__(self) -> str:
        return f"KeptEnvironment({len(self._kept)} hidden)"

    def hide(self) -> None:
        """Take what was read out of the environment; it is still found here, at the next reading of the file."""
        for name in self._read & self._environ.keys():
            self._kept[name] = self._environ[name]
            if self._environ is os.environ:
                _wipe(name)
            del self._environ[name]


def _wipe(name: str) -> None:
    """Overwrite a value where the system put it at the start: unsetting a variable leaves its bytes in the process."""
    import ctypes

    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if address := getenv(os.fsencode(name)):
        ctypes.memset(address, ord("*"), len(ctypes.string_at(address)))
