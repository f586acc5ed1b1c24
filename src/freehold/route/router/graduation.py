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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from freehold.base.errors import StoreError, UsageError
from freehold.base.serving import Job
from freehold.route.providers.contract import Cleared, Piece
from freehold.route.router.gateway import Gateway, GatewayModel, GatewayRoute, Graduation, QualityTask

if TYPE_CHECKING:
    from freehold.route.router.bar import Bars
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
    """Compares students in service with their teachers; one server's. `bars` None: nothing is compared."""

    def __init__(self, ask: AskBeside, bars: Bars | None) -> None:
        self._ask, self._bars = ask, bars
        self._answers: Counter[str] = Counter()  # of students, by route
        self._agreed: dict[tuple[str, str], deque[bool]] = {}  # task and student

    def due(self, planned: PlannedRoute, cleared: Cleared[Job], target: GatewayModel) -> bool:
        """Count an answer of a student; return whether its teacher is asked too."""
        settings = planned.route.graduate
        if settings is None or self._bars is None or cleared.labels:
            return False
        student, teacher = parted(planned.targets)
        job = cleared.work
        if target is not student or teacher is None or job.n != 1 or job.tools:
            return False
        self._answers[planned.name] += 1
        return self._answers[planned.name] % max(round(1 / settings.share), 1) == 0

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
            lambda text: self._compared(task, student, teacher, same_answer(own, text)),
        )

    def _compared(self, task: QualityTask, student: GatewayModel, teacher: GatewayModel, agrees: bool) -> str:
        """Note a comparison; return what the teacher's row says of it."""
        bars = self._bars
        assert bars is not None
        agreed = self._agreed.setdefault((task.name, student.name), deque(maxlen=KEPT))
        agreed.append(agrees)
        words = f"{'agrees with' if agrees else 'differs from'} {student.name}"
        floor = bars.floor(task, student)
        if not floor or not (count := contradicted(agreed, floor)):
            return words
        newest = list(agreed)[-count:]
        at = datetime.now(UTC).isoformat(timespec="seconds")
        why = f"passed over since {at}: {sum(newest)} of its newest {count} answers agree with {teacher.name}"
        agreed.clear()
        try:
            bars.fall(task, student, sum(newest), count, why)
        except StoreError as e:
            _log.error("%s stays in service on %s: %s", student.name, task.name, e.message)
            return f"{words}; its result cannot be written"
        _log.warning("%s on %s is %s", student.name, task.name, why)
        return f"{words}: it is {why}"
