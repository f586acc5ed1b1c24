"""Deployments as files of the data folder: what was asked for, and the plan that came of it.

    keep(home, KeptDeployment("qwen", plan, asked))   # written beside, then renamed
    kept(home)                                        # what `freehold deploy` without MODEL starts again

A plan holds no secret, and neither does a file; it is its owner's alone all the same, as commands name folders. Plans
and rows cross the owner's socket in the same JSON. A file that cannot be read is left where it is and named. Knows no
process and no server.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from freehold.base import private
from freehold.base.errors import StoreError, UsageError
from freehold.outgrow.contract import DeploymentRow, DeployPlan, named
from freehold.outgrow.options import DeployOptions

SCHEMA = 1
MOST_BYTES = 4 << 20  # of a file: a plan has some 10 kB
_T = TypeVar("_T", DeployPlan, DeploymentRow, DeployOptions)


@dataclass(frozen=True, slots=True)
class KeptDeployment:
    """A deployment that was asked for and not stopped."""

    name: str
    plan: DeployPlan
    asked: DeployOptions  # what it was planned from, for an upgrade that changes a part of it
    schema: int = SCHEMA
    made_at: float = field(default_factory=time.time)  # seconds since 1970


def folder(home: Path) -> Path:
    """Return where the files lie."""
    return home / "deployments"


def keep(home: Path, deployment: KeptDeployment) -> Path:
    """Write a deployment's file, in place of an earlier one of its name. Raises StoreError."""
    path = _path(home, deployment.name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        private.folder(path.parent, home)
        with open(part, "wb", opener=private.opener) as file:
            file.write(encoded(deployment))
        part.replace(path)
    except OSError as e:
        with suppress(OSError):
            part.unlink()
        raise StoreError(f"{path} cannot be written: {e.strerror}") from e
    return path


def forget(home: Path, name: str) -> bool:
    """Remove a deployment's file; return whether there was one."""
    try:
        _path(home, name).unlink()
    except FileNotFoundError:
        return False
    except OSError as e:
        raise StoreError(f"{_path(home, name)} cannot be removed: {e.strerror}") from e
    return True


def kept(home: Path) -> tuple[list[KeptDeployment], list[str]]:
    """Return the deployments by name, and a sentence for each file that cannot be read."""
    deployments, damaged = [], []
    for path in sorted(folder(home).glob("[!.]*.json")):
        try:
            _check_ours(path)
            deployment = decoded(path.read_bytes())
            expected = _file_name(named(deployment.name))
            if path.name != expected:  # a copy: the same deployment would be started twice
                raise ValueError(f"it is of {deployment.name}, whose file is {expected}")
            deployments.append(deployment)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError, UsageError) as e:
            why = e.strerror if isinstance(e, OSError) else str(e)
            damaged.append(f"{path} is not a deployment of this version: {why}; remove it, or deploy again")
    return deployments, damaged


def _check_ours(path: Path) -> None:
    """Raise ValueError for a file that others may have written: it names programs, which run as us."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
        raise ValueError(f"it is not a file of at most {MOST_BYTES:,} bytes")
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        mode = f"mode {status.st_mode & 0o777:o}, user {status.st_uid}"
        raise ValueError(f"others than you may write to it ({mode})")


def encoded(deployment: KeptDeployment) -> bytes:
    """Return a deployment as JSON, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(deployment, enc_hook=_plain), indent=1) + b"\n"


def decoded(body: bytes) -> KeptDeployment:
    """Read a deployment. Raises MsgspecError, and ValueError for a file of another version."""
    deployment = msgspec.json.decode(body, type=KeptDeployment, dec_hook=_typed)
    if deployment.schema != SCHEMA:
        raise ValueError(f"it has schema {deployment.schema}, and this version reads {SCHEMA}")
    return deployment


def of_json(plain: Mapping[str, Any], kind: type[_T]) -> _T:
    """Return the plan, row or options of a JSON object. Raises ValidationError."""
    return msgspec.convert(plain, kind, dec_hook=_typed)


def as_json(what: DeployPlan | DeploymentRow | DeployOptions) -> dict[str, Any]:
    """Return a plan, a row or options as a JSON object."""
    return msgspec.to_builtins(what, enc_hook=_plain)


def _path(home: Path, name: str) -> Path:
    return folder(home) / _file_name(name)


def _file_name(name: str) -> str:
    return f"{quote(name, safe='+:@ ').replace('.', '%2E')}.json"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise NotImplementedError(f"a plan holds a {type(value).__name__}")


def _typed(type: type, value: Any) -> Any:
    if type is Path:
        return Path(value)
    raise NotImplementedError(f"a plan holds a {type.__name__}")
