"""A route that teaches a model of its own: which target is taught by which, and whether it still answers like it.

A share of the requests that the student answers is asked of its teacher too, after the client has its answer: every
50th at 2 %, so that 200 requests have four. Where the newest comparisons contradict the agreement that the student had
when it took over, its result is replaced by them: the route then passes it over by the bar, as any other model, and
every row says since when and why. Never for a request with a label. Knows answers as texts; knows no training.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from freehold.base import private
from freehold.base.errors import StoreError, UsageError
from freehold.base.regular import read_bounded
from freehold.base.serving import Job
from freehold.route.providers.contract import Cleared, Piece
from freehold.route.router.answers import texts_beside
from freehold.route.router.bar import Bars, Comparisons
from freehold.route.router.contract import BarCheck
from freehold.route.router.gateway import Gateway, GatewayModel, GatewayRoute, Graduation, QualityTask
from freehold.run.store.refs import slug

if TYPE_CHECKING:
    from freehold.route.router.record import RequestRecord
    from freehold.route.router.routing import PlannedRoute

# Asks a target beside a request, as Shadows.begin does. The last argument gets its answer and returns a line of text.
AskBeside = Callable[
    [GatewayRoute, GatewayModel, Cleared[Job], "RequestRecord", Callable[[str], str] | None], None
]
KEPT = 200  # comparisons of a student that are looked at
# The chance that comparisons of a student which agrees as it must contradict that. Where a bar is 0.8 or more, three
# differences in a row do and two do not; where it is 0.69 or more, four do: those of 200 requests.
ALPHA = 0.01
_log = logging.getLogger("freehold.route.router")


@dataclass(frozen=True, slots=True)
class Graduand:
    """A route with what `graduate` makes of its parts."""

    route: GatewayRoute
    task: QualityTask
    settings: Graduation
    student: GatewayModel  # the target that is taught
    teacher: GatewayModel  # the first target after it that is not


def graduand(gateway: Gateway, name: str) -> Graduand:
    """Return a route's graduation. Raises UsageError for a route that has none."""
    route = gateway.routes.get(name)
    if route is None:
        listed = ", ".join(each for each, one in gateway.routes.items() if one.graduate)
        raise UsageError(f"there is no route {name!r}", f"routes with graduate: {listed or 'none'}")
    if route.graduate is None:
        raise UsageError(
            f"the route {name} teaches no model", 'add graduate = {student = "qwen3:4b", at = 300} to it'
        )
    models = [gateway.models[target] for target in route.targets]
    student, teacher = parted(models)
    assert student is not None and teacher is not None, "reading refuses it"
    return Graduand(route, gateway.tasks[route.task], route.graduate, student, teacher)


def parted(targets: Sequence[GatewayModel]) -> tuple[GatewayModel | None, GatewayModel | None]:
    """Return the target that is taught, the first of the local store, and its teacher, the next one."""
    for i, target in enumerate(targets):
        if target.local:
            return target, targets[i + 1] if i + 1 < len(targets) else None
    return None, None


def same_answer(one: str, other: str) -> bool:
    """Tell whether two answers are equal: as JSON where both are, else as texts without the white space around them."""
    try:
        return json.dumps(json.loads(one), sort_keys=True) == json.dumps(json.loads(other), sort_keys=True)
    except (ValueError, RecursionError):
        return one.split() == other.split()


def contradicted(agreed: Sequence[bool], floor: float) -> int:
    """Return how many of the newest comparisons contradict an agreement of `floor`, the fewest that do; 0: none do.

    They contradict it where this few of them would agree with a chance of at most ALPHA.
    """
    misses = 0
    for count, each in enumerate(reversed(agreed), 1):
        misses += not each
        if misses and not each and tail(misses, count, 1 - floor) <= ALPHA:
            return count
    return 0


def tail(least: int, count: int, chance: float) -> float:
    """Return the chance of `least` or more of `count` events that each have a chance (binomial)."""
    return sum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(least, count + 1))


class StudentWatch:
    """Compares students in service with their teachers; one server's. `bars` None: nothing is compared.

    What was compared lies beside the student's result, so a server that starts again continues.
    """

    def __init__(self, ask: AskBeside, bars: Bars | None) -> None:
        self._ask, self._bars = ask, bars
        self._watched: dict[tuple[str, str], _Watched] = {}  # by task and student

    def due(self, planned: PlannedRoute, cleared: Cleared[Job], target: GatewayModel) -> bool:
        """Count an answer of a student; return whether its teacher is asked too."""
        settings, task = planned.route.graduate, planned.task
        if settings is None or task is None or self._bars is None or cleared.labels:
            return False
        student, teacher = parted(planned.targets)
        job = cleared.work
        if student is None or target is not student or teacher is None or job.n != 1 or job.tools:
            return False
        watched = self._watched.get((task.name, student.name))
        if watched is None:
            taught = self._bars.taught(task, student)
            answers = taught[1].answers if taught else {}
            watched = self._watched[task.name, student.name] = _Watched(task, student, Counter(answers))
        watched.answers[planned.name] += 1
        if watched.answers[planned.name] < max(round(1 / settings.share), 1):
            return False
        watched.pending[planned.name] = watched.answers.pop(planned.name)
        return True

    def begin(
        self, planned: PlannedRoute, cleared: Cleared[Job], record: RequestRecord, pieces: Sequence[Piece]
    ) -> None:
        """Ask the teacher in the background, and compare its answer with these pieces."""
        student, teacher = parted(planned.targets)
        task = planned.task
        if student is None or teacher is None or task is None:
            return
        own = "".join(chunk.text for _, chunk in pieces)
        self._ask(
            planned.route,
            teacher,
            cleared,
            record,
            lambda text: self._compared(planned, student, teacher, same_answer(own, text)),
        )

    def keep(self) -> None:
        """Keep how many answers each student gave since its newest comparison: the server ends.

        A comparison that the end cut off did not happen, so the next server makes it with its first answer.
        """
        for watched in self._watched.values():
            bars, taught = self._bars, self._bars and self._bars.taught(watched.task, watched.student)
            if bars is None or not taught:
                continue
            try:
                comparisons = replace(taught[1], answers=dict(watched.answers + watched.pending))
                bars.keep_compared(watched.task, watched.student, comparisons)
            except StoreError as e:
                _log.error("answers of %s are counted anew: %s", watched.student.name, e.message)

    def _compared(
        self, planned: PlannedRoute, student: GatewayModel, teacher: GatewayModel, agrees: bool
    ) -> str:
        """Note a comparison; return what the teacher's row says of it."""
        bars, task = self._bars, planned.task
        assert bars is not None and task is not None
        words = f"{'agrees with' if agrees else 'differs from'} {student.name}"
        taught = bars.taught(task, student)
        if taught is None:
            return words
        floor, before = taught
        watched = self._watched.get((task.name, student.name))
        if watched:
            watched.pending.pop(planned.name, None)
        agreed = [*before.agreed, agrees][-KEPT:]
        count = contradicted(agreed, floor)
        try:
            if not count:
                answers = dict(watched.answers + watched.pending) if watched else before.answers
                bars.keep_compared(task, student, Comparisons(before.at, agreed, answers))
                return words
            at = datetime.now(UTC).isoformat(timespec="seconds")
            newest = agreed[-count:]
            why = f"passed over since {at}: {sum(newest)} of its newest {count} answers agree with {teacher.name}"
            bars.fall(task, student, sum(newest), count, why)
        except StoreError as e:
            _log.error("%s stays in service on %s: %s", student.name, task.name, e.message)
            return f"{words}; its result cannot be written"
        _log.warning("%s on %s is %s", student.name, task.name, why)
        return f"{words}: it is {why}"


@dataclass(frozen=True, slots=True)
class _Watched:
    """A student in service. `answers`: by route, since the newest comparison; `pending`: before one in progress."""

    task: QualityTask
    student: GatewayModel
    answers: Counter[str]
    pending: Counter[str] = field(default_factory=Counter)


# --- how far a route is: what freehold graduate and a server that is idle leave in the data folder -----

FOLDER, STATE = "graduates", "state.json"
DATA, MODEL, RECEIPT = "data", "model", "receipt.json"  # of a run's folder, called by the digest of its texts
MOST_BYTES = 1 << 20  # of a state or a note
Stage = Literal["rented", "teaching", "measured", "owned"]


def folder_of(home: Path, route: str) -> Path:
    """Return where a route's data and adapters are."""
    return home / FOLDER / slug(route)


def unfinished(home: Path, route: str) -> Path | None:
    """Return the folder of a run that was cut off after it had chosen its texts; None where there is none.

    It is continued with these texts: newer ones would begin another run, and a busy route would never be taught.
    """
    folder = folder_of(home, route)
    state = folder / STATE
    since = state.stat().st_mtime if state.is_file() else 0.0
    begun = {path.parent.parent: path.stat().st_mtime for path in folder.glob(f"*/{DATA}/{RECEIPT}")}
    newest = max(begun, key=lambda each: begun[each], default=None)
    return newest if newest is not None and begun[newest] > since else None


@dataclass(frozen=True, slots=True)
class IdleTry:
    """What became of a route's newest try. `texts`: how many were kept; `ended` False: it was cut off."""

    texts: int
    ended: bool
    message: str = ""  # of a failure
    at: float = 0.0  # seconds since 1970

    @classmethod
    def of(cls, home: Path, route: str) -> IdleTry | None:
        """Read a route's newest try; None where there is none, or a damaged file."""
        try:
            row = json.loads(read_bounded(_try_path(home, route), MOST_BYTES))
            return cls(int(row["texts"]), bool(row["ended"]), str(row["message"]), float(row["at"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, home: Path, route: str) -> None:
        """Write it, for its owner alone; a disk that takes nothing keeps none."""
        path = _try_path(home, route)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.new")
            with open(beside, "w", encoding="utf-8", opener=private.opener) as file:
                json.dump(asdict(self), file)
            beside.replace(path)


def _try_path(home: Path, route: str) -> Path:
    return folder_of(home, route) / "idle.json"


def kept_count(ledger: Path, route: str) -> int:
    """Return how many texts of a route are kept; 0 where none can be read."""
    path = texts_beside(ledger)
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as db,
    ):
        (count,) = db.execute("SELECT count(*) FROM texts WHERE route = ?", (route,)).fetchone()
        return int(count)
    return 0


@dataclass(frozen=True, slots=True)
class GraduationPath:
    """How far a route is from renting answers to owning the model that gives them."""

    route: str
    student: str
    teacher: str
    stage: Stage
    texts: int  # kept texts of the route
    at: int  # examples from which it is taught
    bar: float
    low: float | None  # the lower bound of the student's newest result; None: it was not measured
    message: str  # the proposal, why a student went back, or what the newest try ended with

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def proposal_of(home: Path, route: str) -> tuple[str, float, str] | None:
    """Return a state's stage, the student's lower bound, and the proposal; None where nothing was taught.

    Raises StoreError for a damaged file.
    """
    path = folder_of(home, route) / STATE
    if not path.is_file():
        return None
    try:
        table = json.loads(read_bounded(path, MOST_BYTES))
        return str(table["stage"]), float(table["student"]["low"]), str(table["proposal"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(
            f"{path} is damaged: {str(e)[:80]}", f"remove it, and run freehold graduate {route} again"
        ) from e


def path_of(home: Path, plan: Graduand, bars: BarCheck, texts: int) -> GraduationPath:
    """Return how far a route is. `texts`: how many are kept of it. A damaged state is named in the message."""
    route, newest = plan.route.name, IdleTry.of(home, plan.route.name)
    passes, why = bars.passes(plan.task, plan.student)
    stage: Stage = "rented"
    low, message = None, newest.message if newest else ""
    try:
        state = proposal_of(home, route)
        low, message = (state[1], why) if state else (low, message)
        if passes:
            stage, message = "owned", why
        elif unfinished(home, route) is not None:
            stage = "teaching"
        elif state and state[0] == "proposed":
            stage, message = "measured", state[2]
    except StoreError as e:
        message = e.message
    return GraduationPath(
        *(route, plan.student.name, plan.teacher.name, stage),
        *(texts, plan.settings.at, plan.task.bar, low, message),
    )


@dataclass(slots=True)
class TaughtNow:
    """Which route an idle server teaches now: `Server.part(TaughtNow)`; "" for none."""

    route: str = ""
