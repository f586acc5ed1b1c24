"""Finds and reads gateway.toml for the verbs that need it: what it refers to is looked up on this machine.

Knows settings, the store and the price table; opens no connection. Where neither --gateway nor config.toml names a
file, nothing of router/ is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, UsageError

if TYPE_CHECKING:
    from freehold.route.router.gateway import Gateway
    from freehold.route.router.toml.table import Outside
    from freehold.run.store import Store


def gateway_path(settings: Settings, path: Path | None) -> Path | None:
    """Return the file that is named on the command line or in config.toml; None: there is none."""
    if path is not None:
        return path.expanduser()
    return Path(settings.gateway).expanduser() if settings.gateway else None


def read_gateway(settings: Settings, file: Path | None, *, keys: bool = True) -> Gateway:
    """Read the file that is named. Raises UsageError where none is, and BadGateway; `keys` False looks no key up."""
    from freehold.route.router.reading import read

    path = gateway_path(settings, file)
    if path is None:
        raise UsageError("no gateway.toml is named", "give --gateway FILE, or gateway = FILE in config.toml")
    return read(path, outside_of(settings, keys=keys))


def ledger_file(settings: Settings, named: Path | None) -> Path:
    """Return the ledger that a verb reads: the one that is named, or the one of this home's gateway.toml.

    A file with mistakes leaves its ledger readable: only that key of it is looked at.
    """
    if named is not None:
        return named.expanduser()
    own, path = settings.home / "ledger.sqlite", gateway_path(settings, None)
    if path is None:
        return own
    import tomllib

    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8")).get("ledger")
    except (OSError, ValueError):
        return own
    return path.absolute().parent / stated if isinstance(stated, str) and stated.strip() else own


def holds(settings: Settings, name: str) -> bool:
    """Return whether this machine's store has a model of that name."""
    from freehold.run.store import Store

    return _holds(Store(settings), ())(name)


def outside_of(
    settings: Settings,
    environment: Mapping[str, str] | None = None,
    *,
    keys: bool = True,
    coming: Collection[str] = (),
) -> Outside:
    """Return what a file may refer to on this machine; `coming`: models that are fetched before they are asked."""
    from freehold.route.router.toml.table import Outside
    from freehold.run.store import Store

    more: dict[str, Any] = {} if environment is None else {"environment": environment}
    if not keys:
        more = {"environment": AskedVariables(), "keyring": lambda name: "unread"}
    return Outside(has_model=_holds(Store(settings), coming), **more)


class AskedVariables(dict[str, str]):
    """An environment that has every variable, for a file that is checked where its keys are not."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Return what may stand for a key."""
        self.asked.add(name)
        return "unread"


def _holds(store: Store, coming: Collection[str]) -> Callable[[str], bool]:
    def held(name: str) -> bool:
        from freehold.run.store.naming import parted

        if name in coming:
            return True
        try:
            store.resolve(parted(store, name).model)
        except FreeholdError:
            return False
        return True

    return held
