"""Whether a model reaches a task's bar: the results of `freehold bar run`, and what each of them holds for.

A result holds for what was measured and nothing else: these cases, this file of weights, its quantisation, template
and default system prompt. Where one of them has changed the result is void, and where there is none the model does
not pass. A rented model can change unannounced under its name, so its results expire. Knows no model that answers
and no statistics; evals has both.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from freehold.base.errors import FreeholdError, StoreError
from freehold.base.private import folder
from freehold.base.regular import open_regular, read_bounded
from freehold.choose.advisor.interval import wilson
from freehold.route.router.gateway import GatewayModel, QualityTask
from freehold.run.store.manifest import write_json
from freehold.run.store.refs import slug

if TYPE_CHECKING:
    from freehold.run.store import Store

FOLDER = "bars"
SCHEMA = 1
LEVEL = 0.95  # of the intervals
RENTED_DAYS = 90  # a provider's alias moves to the next version about that often
FRESH_S = 5.0  # a verdict is looked up anew after so long, so that a route costs no file access a request
_MOST_BYTES = 1 << 20
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """What of a model a result hangs on. Digests are SHA-256 in hex; "" is "none of its own"."""

    name: str  # as it was asked for
    weights: str  # digest of the file, or provider, address and name of a rented model
    quantization: str
    template: str = ""  # digest of a template that replaces the file's
    system: str = ""  # digest of the default system prompt and messages
    settings: str = ""  # digest of other changed defaults and of an adapter
    rented: bool = False


@dataclass(frozen=True, slots=True)
class BarResult:
    """A model's score on a task's cases, 0 to 1, with its 95 % interval."""

    task: str
    model: MeasuredModel
    file: str  # of the cases, absolute
    cases_digest: str  # of the file's bytes
    cases: int
    score: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]
    at: str  # ISO 8601, UTC
    judge: str = ""  # NAME@DIGEST of the model that judged
    tokens: int = 0
    seconds: float = 0.0
    agreement: float = 0.0  # with its teacher, that a taught model must keep; 0: it was not taught
    why: str = ""  # of a result that comparisons of its answers took the place of

    def as_json(self) -> dict[str, Any]:
        """Return plain values under stable names."""
        return asdict(self)


@dataclass(slots=True)
class Comparisons:
    """What a taught model's answers were, compared with its teacher's, since the result that was made `at`."""

    at: str
    agreed: list[bool] = field(default_factory=list)  # the newest last
    answers: dict[str, int] = field(default_factory=dict)  # of each route, since its newest comparison


_CHANGED = {
    "weights": "the model's weights changed",
    "quantization": "its quantisation changed",
    "template": "its chat template changed",
    "system": "its system prompt changed",
    "settings": "its default settings changed",
}


def void(result: BarResult, model: MeasuredModel, now: float) -> str:
    """Say why a result does not hold any more for `model` as it is now; empty: it holds."""
    for name, why in _CHANGED.items():
        if getattr(result.model, name) != getattr(model, name):
            return why
    digest = file_digest(Path(result.file))
    if digest != result.cases_digest:
        return "its task file changed" if digest else "its task file cannot be read"
    age = (now - datetime.fromisoformat(result.at).timestamp()) / _DAY_S
    if result.model.rented and age > RENTED_DAYS:
        return f"it is {age:.0f} days old, and a rented model's holds {RENTED_DAYS}"
    return ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or "" where it cannot be read; read again only after it was written."""
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _digest(path: Path, mtime_ns: int, size: int, inode: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(*texts: str) -> str:
    """Return a digest of texts, "" where all are empty."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest() if any(texts) else ""


class BarStore:
    """Results below one home: a file for each task and model, readable by its owner alone."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / FOLDER

    def path(self, task: str, model: str) -> Path:
        """Return where a model's result on a task lies."""
        return self._folder / f"{slug(task)}--{slug(model)}.json"

    def keep(self, result: BarResult) -> Path:
        """Write a result in place of the model's previous one on this task. Raises StoreError."""
        path = self.path(result.task, result.model.name)
        try:
            folder(self._folder, self._home)
            write_json(path, {"schema": SCHEMA, **result.as_json()})
        except OSError as e:
            raise StoreError(f"{path} cannot be written: {e.strerror}", "free some space") from e
        return path

    def find(self, task: str, model: str) -> BarResult | None:
        """Return a model's result on a task, or None; a damaged file counts as none."""
        return _read(self.path(task, model))

    def compared(self, result: BarResult) -> Comparisons:
        """Return a taught model's comparisons since this result; none where they are of another, or damaged."""
        try:
            table = json.loads(read_bounded(self._compared_path(result), _MOST_BYTES))
            if table["at"] != result.at:
                return Comparisons(result.at)
            answers = {str(route): int(count) for route, count in table["answers"].items()}
            return Comparisons(result.at, [each == "1" for each in str(table["agreed"])], answers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Comparisons(result.at)

    def keep_compared(self, result: BarResult, comparisons: Comparisons) -> None:
        """Write a taught model's comparisons beside its result. Raises StoreError."""
        path = self._compared_path(result)
        agreed = "".join("01"[each] for each in comparisons.agreed)
        table = {"at": comparisons.at, "agreed": agreed, "answers": comparisons.answers}
        try:
            # Not flushed to disk: a power cut costs one comparison, and the loop of a server waits for this.
            write_json(path, table, durable=False)
        except OSError as e:
            raise StoreError(f"{path} cannot be written: {e.strerror}", "free some space") from e

    def _compared_path(self, result: BarResult) -> Path:
        return self.path(result.task, result.model.name).with_suffix(".compared")

    def all(self) -> list[BarResult]:
        """Return every result, by task and model."""
        results = [_read(path) for path in self._folder.glob("*.json")]
        return sorted((r for r in results if r), key=lambda r: (r.task, r.model.name))


def _read(path: Path) -> BarResult | None:
    try:
        if os.stat(path).st_size > _MOST_BYTES:
            return None
        table = json.loads(path.read_bytes())
        if table.pop("schema") != SCHEMA:
            return None
        result = BarResult(**{**table, "model": MeasuredModel(**table["model"])})
        datetime.fromisoformat(result.at)
        return result if 0 <= result.low <= result.score <= result.high <= 1 else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


Identify = Callable[[GatewayModel], MeasuredModel]


@dataclass(frozen=True, slots=True)
class _Verdict:
    at: float
    task: QualityTask
    model: GatewayModel
    passed: bool
    why: str


class Bars:
    """Answers whether a model reaches a task's bar, for routes. Verdicts are kept for FRESH_S."""

    def __init__(self, home: Path, identify: Identify, clock: Callable[[], float] = time.time) -> None:
        self._kept = BarStore(home)
        self._identify, self._clock = identify, clock
        self._verdicts: dict[tuple[str, str], _Verdict] = {}

    def passes(self, task: QualityTask, model: GatewayModel) -> tuple[bool, str]:
        """Return whether the lower end of the model's interval reaches the bar, and why or why not."""
        now = self._clock()
        known = self._verdicts.get((task.name, model.name))
        fresh = known is not None and 0 <= now - known.at < FRESH_S
        # A reload has other tasks and models.
        if known is None or not fresh or known.task is not task or known.model is not model:
            known = _Verdict(now, task, model, *self._verdict(task, model, now))
            self._verdicts[task.name, model.name] = known
        return known.passed, known.why

    def taught(self, task: QualityTask, model: GatewayModel) -> tuple[float, Comparisons] | None:
        """Return the agreement with its teacher that a taught model must keep, and its comparisons since then.

        None where no agreement is required.
        """
        result = self._kept.find(task.name, model.name)
        return (
            None
            if result is None or not result.agreement
            else (result.agreement, self._kept.compared(result))
        )

    def keep_compared(self, task: QualityTask, model: GatewayModel, comparisons: Comparisons) -> None:
        """Keep a taught model's comparisons, unless it has another result by now. Raises StoreError."""
        result = self._kept.find(task.name, model.name)
        if result is not None and result.at == comparisons.at:
            self._kept.keep_compared(result, comparisons)

    def fall(self, task: QualityTask, model: GatewayModel, agreed: int, compared: int, why: str) -> None:
        """Put newer comparisons in the place of a taught model's result: the route passes it over from now on.

        Raises StoreError.
        """
        result = self._kept.find(task.name, model.name)
        if result is None:
            return
        bounds = wilson([1.0] * agreed + [0.0] * (compared - agreed), LEVEL)
        newer = {"score": bounds.mid, "low": bounds.low, "high": bounds.high, "method": "wilson"}
        self._kept.keep(replace(result, **newer, cases=compared, why=why, at=now_text(self._clock())))
        self._verdicts.pop((task.name, model.name), None)

    def _verdict(self, task: QualityTask, model: GatewayModel, now: float) -> tuple[bool, str]:
        result = self._kept.find(task.name, model.name)
        again = f"freehold bar run {task.name} --model {model.name}"
        if result is None:
            return False, f"not measured on {task.name}: {again}"
        try:
            why = void(result, self._identify(model), now)
        except FreeholdError as e:
            return False, f"its result on {task.name} cannot be checked: {e.message}"
        if task.file and task.file != result.file:
            why = "it is of another task file"
        if why:
            return False, f"its result on {task.name} is void, {why}: {again}"
        of = f"{result.low:.3f} (score {result.score:.3f} on {result.cases:,} cases)"
        of += f"; {result.why}" if result.why else ""
        if result.low < task.bar:
            return False, f"lower bound {of} is below the bar of {task.bar:g} on {task.name}"
        return True, f"lower bound {of} reaches the bar of {task.bar:g} on {task.name}"


def now_text(clock: float) -> str:
    """Return a time as results keep it."""
    return datetime.fromtimestamp(clock, UTC).isoformat(timespec="seconds")


# --- what a model is at this moment: a stored file with its changed defaults, or a rented name ------
# Reads records, not weights: the digest of a stored file is in its manifest.


class Identities:
    """Identifies models of one store and of providers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, model: GatewayModel) -> MeasuredModel:
        """Return what a gateway's model is now. Raises ModelNotFound where the store has it no more."""
        if model.remote is None:
            return self.stored(model.local, model.name)
        provider = model.remote.provider
        weights = f"{provider.kind} {provider.url} {model.remote.model}"
        return MeasuredModel(model.name, weights, "as the provider serves it", rented=True)

    def stored(self, name: str, called: str = "") -> MeasuredModel:
        """Return what a stored model is now, with an adapter after a plus, under the name that was asked for."""
        from freehold.run.store.naming import adapters_of

        model, adapters = adapters_of(self._store, name)
        listed, overlay = self._store.show(model), self._store.overlays.find(model)
        if listed.base:  # an overlay's digest is its record's
            listed = self._store.show(listed.base)
        parameters = json.dumps(dict(overlay.parameters), sort_keys=True, default=str) if overlay else ""
        own = text_digest(parameters, overlay.adapter) if overlay else ""
        settings = text_digest(own, *(_adapter_digest(each.path) for each in adapters)) if adapters else own
        return MeasuredModel(
            called or name,
            listed.digest or _unhashed(listed.path),
            listed.rounding or _quantization(listed.path, listed.digest),
            template=text_digest(overlay.template) if overlay else "",
            system=text_digest(overlay.system, *(t for m in overlay.messages for t in m)) if overlay else "",
            settings=settings,
        )


def _adapter_digest(path: Path) -> str:
    from freehold.run.formats import open_lora

    return open_lora(path).digest


def _unhashed(path: Path) -> str:
    """Name a file that was never hashed by path, size and time."""
    status = path.stat()
    return hashlib.sha256(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()


@lru_cache(maxsize=64)
def _quantization(path: Path, digest: str) -> str:
    """Read the name of a file's quantisation, once for each digest."""
    from freehold.run.formats import open_model_file, quantization_of

    with closing(open_model_file(path)) as opened:
        bytes_by_type: dict[str, int] = {}
        for tensor in opened.tensors.values():
            bytes_by_type[tensor.type.name] = bytes_by_type.get(tensor.type.name, 0) + tensor.nbytes
        most_first = dict(sorted(bytes_by_type.items(), key=lambda kv: -kv[1]))
        return quantization_of(opened, most_first)
