"""Checks every model file against its SHA-256 and every pack against its checksums, for `doctor`.

Only reads: damaged files are listed with the command that repairs them. Knows files and digests; knows no format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import click

from freehold.base.config import Settings
from freehold.base.machine import Processor
from freehold.cli.progress import StatusLine
from freehold.run.store import Store
from freehold.run.store.records import RecordedFile
from freehold.run.store.space import human

READ = 4 << 20
Seen = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The state of one file. `name`: the model's, "" for a pack that no model uses.

    `state`: sound, damaged, missing, or unknown where no digest is recorded.
    """

    kind: str  # model | pack
    name: str
    path: str
    bytes: int
    state: str
    problem: str = ""
    hint: str = ""


def verify(settings: Settings, as_json: bool) -> None:
    """Check all files, print the results, and exit with 1 if a file is damaged or missing."""
    store = Store(settings)
    files, packs = store.files(), sorted(store.packs.glob("*.pack")) if store.packs.is_dir() else []
    total = max(sum(f.bytes for f in files) + sum(_size(p) for p in packs), 1)
    checks: list[FileCheck] = []
    names = {m.digest: m.name for m in store.list() if m.digest and not m.base}
    done = 0
    with StatusLine("nothing was changed") as line:

        def seen(count: int) -> None:
            nonlocal done
            done += count
            line.show(f"verifying: {human(done)} of {human(total)}, {100 * done // total} %")

        models = (_file(file, seen) for file in files)
        packed = (_pack(pack, names.get(pack.stem.rpartition("-")[0], ""), seen) for pack in packs)
        for each in chain(models, packed):
            checks.append(each)
            if not as_json:
                line.clear()
                _print(each)
    bad = [f for f in checks if f.state in ("damaged", "missing")]
    if as_json:
        click.echo(json.dumps({"sound": not bad, "files": [asdict(f) for f in checks]}))
    else:
        unknown = sum(f.state == "unknown" for f in checks)
        also = f", {unknown} without a recorded digest" if unknown else ""
        click.echo(f"{len(checks)} files, {human(done)} read: {len(bad)} damaged or missing{also}", err=True)
    if bad:
        raise click.exceptions.Exit(1)


def _file(file: RecordedFile, seen: Seen) -> FileCheck:
    state, problem = "sound", ""
    try:
        size = file.path.stat().st_size
        if size != file.bytes:
            state, problem = "damaged", f"it has {size:,} bytes; {file.bytes:,} are recorded"
        elif not file.sha256:
            state, problem = "unknown", "no digest is recorded for it"
        elif (digest := _sha256(file.path, seen)) != file.sha256:
            state, problem = "damaged", f"its SHA-256 is {digest}; {file.sha256} is recorded"
    except OSError as e:
        missing = isinstance(e, FileNotFoundError)
        state, problem = (
            ("missing", "it is missing") if missing else ("damaged", f"it cannot be read: {e.strerror}")
        )
    hint = _way_out(file) if state in ("damaged", "missing") else ""
    return FileCheck("model", file.model, str(file.path), file.bytes, state, problem, hint)


def _way_out(file: RecordedFile) -> str:
    if file.owner == "freehold":
        return f"freehold rm {file.model}, then freehold pull {file.model}"
    if file.owner == "user":
        return f"fetch {file.path} again from where it came"
    return f"remove it with {file.owner}, which holds it, and fetch it there again"


def _pack(path: Path, model: str, seen: Seen) -> FileCheck:
    from freehold.run.models.packing.packs import damage_of

    size = _size(path)
    try:
        problem = damage_of(path, seen)
    except FileNotFoundError:  # another process repacked its model
        problem = ""
    except OSError as e:
        problem = f"it cannot be read: {e.strerror}"
    hint = f"remove {path}: the next load packs the weights again" if problem else ""
    return FileCheck("pack", model, str(path), size, "damaged" if problem else "sound", problem, hint)


def _sha256(path: Path, seen: Seen) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(READ):
            total.update(data)
            seen(len(data))
    return total.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _print(check: FileCheck) -> None:
    name = f"{check.name or 'a file no model names'}{' (packed)' if check.kind == 'pack' else ''}"
    click.echo(f"{check.state:<8} {human(check.bytes):>9}  {name}  {check.path}")
    if check.problem:
        click.echo(f"{'':<8} {check.problem}")
    if check.hint:
        click.echo(f"{'':<8} {check.hint}")


# --- which parts of this system and its kernels were never measured, with a request for a report ----
# docs/guides/platforms.md says the same as a table.

_INVITE = "please send us the file of: freehold bench smollm2:135m --report report.json"


def notes(chip: Processor, isa: str, architecture: str, is_mac: bool) -> list[str]:
    """Return sentences for the user of such a machine; none where its like was measured."""
    is_arm = architecture.lower() in ("arm64", "aarch64")
    texts = []
    if chip.is_translated:
        texts.append("this Python is an x86-64 program under Rosetta; with an arm64 Python, NEON kernels run")
    if is_arm and isa == "scalar":
        texts.append(
            "no vector kernels run here: plain loops compute, several times slower than this processor could"
        )
    elif is_arm:
        texts.append(
            f"the {isa} kernels are correct by emulation, fast by model, not yet measured on such a machine"
        )
    if is_mac:
        texts.append("Freehold is compiled for macOS by cross-compilation and was not yet run on a Mac by us")
    return [*texts, _INVITE] if texts else []
