"""A recording over a route: labels first, then one target after the other until one has its text, and one row.

An owned target is a speech model of this machine. A rented one gets a recording only after it was decoded here: so it
is known to be one, how long it is, and what it may cost. No recording with a label is sent where the label forbids it,
also when every owned target fails. Once a part of a text has been passed on, no other target continues it. Knows no
wire and no engine.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

from freehold.base.errors import (
    BudgetSpent,
    FreeholdError,
    LedgerUnavailable,
    PolicyRefused,
    UnsupportedModel,
)
from freehold.base.serving import (
    ModelHandle,
    Origin,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    SpeechSource,
    SpeechStream,
)
from freehold.base.types import Usage
from freehold.route.providers.contract import Cleared, RentedTranscript, SoundUsage, UpstreamFault
from freehold.route.providers.openai.speech import lacks
from freehold.route.router.attempts import Explanation, explained
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.ledger.rows import Outcome
from freehold.route.router.parts import (
    CHARGED,
    MOST_WAIT_S,
    RETRIED,
    SAYS_NOTHING,
    GatewayParts,
    cause_of,
    judge,
    wait_before_retry,
)
from freehold.route.router.record import ROOM_WAIT_S, RequestRecord
from freehold.route.router.routing import (
    Breakers,
    GatewayPlan,
    PassedOver,
    PlannedRoute,
    TargetChoice,
    choose_by,
    closed,
    unlicensed,
)
from freehold.run.sounds.opening import MeasuredSound

NO_SOUND = 'task = "transcription" in gateway.toml makes a route of speech models'
CHUNK_S = 30.0  # of a rented recording, as keys' budgets count chunks
OTHERS_MAY = (413, 415)  # statuses by which a provider refuses what another one may take


def choose_hearing(
    planned: PlannedRoute, cleared: Cleared[SpeechJob], size: int, parts: GatewayParts
) -> TargetChoice:
    """Return a route's targets for a recording of `size` bytes, each that is passed over with its reason."""
    return choose_by(
        planned, lambda target: _why_not(target, planned, cleared, size), parts.breakers, parts.load
    )


def check_hears(plan: GatewayPlan, planned: PlannedRoute) -> None:
    """Refuse a recording for a route of texts. Raises UnsupportedModel."""
    if planned.name in plan.gateway.routes and not planned.route.hears:
        raise UnsupportedModel(
            f"{planned.name} is a text route: its targets do not accept recordings", NO_SOUND
        )


def explain_recording(
    plan: GatewayPlan, name: str, sound: MeasuredSound, size: int, origin: Origin, *, when: float = 0.0
) -> Explanation:
    """Return what would become of a recording of `size` bytes; nothing is sent.

    Raises UsageError for a label that does not exist, UnsupportedModel for a route of texts.
    """
    planned = plan.route(name) or plan.owned(name)
    check_hears(plan, planned)
    cleared = plan.labeller.clear_recording(SpeechJob(), origin, planned.route)
    choice = choose_by(planned, lambda target: _why_not(target, planned, cleared, size), Breakers(), None)
    plain = Explanation(planned.name, cleared.labels, cleared.places, 0, 0, (), "", None, sound.seconds)
    costs = {
        each.name: (0, 0)
        if each.price is None
        else (
            each.price.of_sound(sound.seconds, None, when),
            each.price.most_of_sound(sound.seconds, 0, when),
        )
        for each in choice.order
    }
    return explained(plain, plan, choice, origin, costs)


def _why_not(
    target: GatewayModel, planned: PlannedRoute, cleared: Cleared[SpeechJob], size: int
) -> PassedOver | None:
    if (why := closed(target, cleared)) is not None:
        return why
    remote = target.remote
    if remote is not None and (
        lack := lacks(remote, cleared.work, size, urlsplit(remote.provider.url).hostname or "")
    ):
        return PassedOver("ability", lack)
    return unlicensed(target, planned)


class RoutedHearing:
    """Implements SpeechStream over the targets of one request."""

    def __init__(
        self,
        parts: GatewayParts,
        planned: PlannedRoute,
        record: RequestRecord,
        choice: TargetChoice,
        cleared: Cleared[SpeechJob],
        recording: SpeechSource,
        keep_alive: float | None,
    ) -> None:
        self._parts, self._planned, self._record, self._choice = parts, planned, record, choice
        self._cleared, self._recording, self._keep_alive = cleared, recording, keep_alive
        self._waiting = list(choice.allowed)
        self._errors: dict[str, FreeholdError] = {}
        self._tries = 0  # of the target that is asked
        self._target: GatewayModel | None = None
        self._stream: SpeechStream | None = None  # of an owned target; None while a rented one is asked
        self._sound: MeasuredSound | None = None  # as it was measured for a rented one
        self._facts: SpeechFacts | None = None
        self._began = 0.0  # time.monotonic() of the attempt
        self._sent = False  # the target has the recording, or part of it
        self._passed = self._over = self._closed = False
        self._tokens = 0
        self._usage = Usage(0, 0)  # of a rented target that counts tokens

    @property
    def facts(self) -> SpeechFacts:
        """What is known of the recording once `opened` returned."""
        assert self._facts is not None, "facts were used before opened() returned"
        return self._facts

    async def opened(self) -> None:
        """Find the target that is asked first, and learn how long the recording is. Nothing is sent yet."""
        try:
            await self._next_target()
        except BaseException:
            self._closed = self._over = True
            await self._end_attempt()
            raise

    def __aiter__(self) -> RoutedHearing:
        return self

    async def __anext__(self) -> SpeechPart:
        while not self._over:
            try:
                part = await self._pull()
            except FreeholdError as e:
                await self._failed(e)
                continue
            if part is None:
                await self._whole()
                break
            if not self._passed:
                self._passed = True
                self._record.first_s = self._record.passed_s
            self._tokens += part.tokens
            named = self._current.name
            return part if named == self._record.about.name else replace(part, model=named)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it: the target stops, and a row says how far it came. Harmless after the end."""
        if self._closed:
            return
        self._closed = self._over = True
        sent = self._sent
        try:
            await self._end_attempt()
        finally:
            if not self._record.booked:
                await self._parts.background.shielded(self._book_left(sent=sent))

    # --- targets ---------------------------------------------------------------------------------------

    @property
    def _current(self) -> GatewayModel:
        assert self._target is not None
        return self._target

    async def _next_target(self) -> None:
        """Make the next target that can be asked the one that is. Raises where none is left."""
        while self._waiting:
            target = self._waiting[0]
            try:
                if await self._may_ask(target):
                    await self._begin(target)
                    return
            except UnsupportedModel as e:
                await self._end_attempt()
                self._parts.breakers.dropped(target.name)
                self._drop(target, PassedOver("ability", e.message))
            except BudgetSpent as e:
                self._errors[target.name] = e
                self._drop(target, PassedOver("budget", e.message))
            except FreeholdError as e:
                self._target = target
                await self._noted(e)
        raise self._failure()

    async def _may_ask(self, target: GatewayModel) -> bool:
        alone = len(self._waiting) == 1
        limit = self._planned.route.timeout_s if alone and target.remote is not None else 0.0
        reason, wait_s = await self._parts.breakers.turn(target.name, limit)
        if reason:
            self._drop(target, PassedOver("breaker", reason, wait_s))
            return False
        await self._measure(target)
        await self._record.reserve(self._most(target), target, wait_s=ROOM_WAIT_S if alone else 0.0)
        return True

    async def _measure(self, target: GatewayModel) -> None:
        """Learn form and length of what a rented target would be sent."""
        if target.remote is None or self._sound is not None:
            return
        self._sound = await self._parts.measuring.sound(self._recording, self._cleared.work.most_s)
        seconds = self._sound.seconds
        self._record.sound_s = self._record.sound_s or seconds
        self._facts = self._facts or SpeechFacts(seconds, seconds, math.ceil(seconds / CHUNK_S))

    async def _begin(self, target: GatewayModel) -> None:
        """Open the recording at an owned target; a rented one is sent it when its text is wanted."""
        self._target, self._began, self._sent = target, time.monotonic(), False
        if target.remote is not None:
            return
        self._cleared.check(target.place)
        self._start()
        served: ModelHandle = await self._parts.calls.engines.use(target.local, self._keep_alive)
        self._stream = await served.hear(self._cleared.work, self._recording, self._keep_alive)
        self._facts = self._facts or self._stream.facts
        self._record.sound_s = self._facts.duration_s

    def _start(self) -> None:
        """Count the attempt as begun."""
        self._sent, self._began = True, time.monotonic()
        self._parts.breakers.begin(self._current.name)
        self._parts.load.begin(self._current)

    async def _pull(self) -> SpeechPart | None:
        """Return the next part of the text; None after the last one."""
        target = self._current
        if self._stream is not None:
            try:
                return await anext(self._stream)
            except StopAsyncIteration:
                return None
        if self._passed or target.remote is None:
            return None
        assert self._sound is not None
        if target.price is not None:
            await self._record.leaves()
        self._start()
        answer = await self._parts.calls.rents().hear(
            self._cleared,
            target.remote,
            self._recording,
            self._sound,
            timeout_s=self._planned.route.timeout_s,
        )
        self._note_rented(target, answer)
        return answer.part

    def _note_rented(self, target: GatewayModel, answer: RentedTranscript) -> None:
        used = answer.used or SoundUsage()
        self._record.estimated = self._record.estimated or (answer.used is None and target.price is not None)
        nano = self._cost(target, answer.used)
        self._record.attempted(target, "", time.monotonic() - self._began, nano=nano)
        self._usage = Usage(used.audio + used.text, used.output)

    # --- ends ------------------------------------------------------------------------------------------

    async def _whole(self) -> None:
        """Book the row before the client has the end."""
        self._over = True
        target = self._current
        self._parts.breakers.answered(target.name)
        usage = self._usage
        if target.remote is None:
            usage = Usage(0, self._tokens)
            self._record.attempted(target, "", time.monotonic() - self._began)
        await self._end_attempt()
        await self._record.book("whole", target, usage, "stop")

    async def _failed(self, e: FreeholdError) -> None:
        """Take a failure while a text was wanted: another attempt, or the error for the client."""
        try:
            if self._passed:
                raise e
            await self._noted(e)
            await self._next_target()
        except FreeholdError as last:
            self._over = True
            if self._passed:
                self._parts.breakers.failed(self._current.name, self._planned.route.breaker)
                self._record.attempted(self._current, cause_of(last), time.monotonic() - self._began)
            await self._end_attempt()
            if not self._record.booked:
                await self._book_quietly("broken" if self._passed else "failed")
            raise

    async def _noted(self, e: FreeholdError) -> None:
        """Note an attempt that failed, and drop the target unless it is asked again. Raises the client's own fault."""
        target, cause = self._current, cause_of(e)
        sent = self._sent
        await self._end_attempt()
        if isinstance(e, PolicyRefused | LedgerUnavailable):
            self._parts.breakers.dropped(target.name)
            raise e
        if isinstance(e, UnsupportedModel):
            self._parts.breakers.dropped(target.name)
            self._drop(target, PassedOver("ability", e.message))
            return
        status = e.status if isinstance(e, UpstreamFault) else 0
        nano = 0
        if sent and cause in CHARGED and target.price is not None:
            nano, self._record.estimated = self._cost(target, None), True
            self._record.risked += max(self._most(target) - nano, 0)
        if sent:
            self._record.attempted(target, cause, time.monotonic() - self._began, status=status, nano=nano)
        judge(
            self._parts.breakers, target, cause, self._planned.route.breaker, blameless=status in OTHERS_MAY
        )
        if cause in SAYS_NOTHING and status not in OTHERS_MAY:
            raise e
        self._errors[target.name] = e
        self._tries += 1
        wait_s = wait_before_retry(e, self._tries)
        if cause in RETRIED and self._tries <= self._planned.route.retries and wait_s <= MOST_WAIT_S:
            await asyncio.sleep(wait_s)
        else:
            self._waiting = [each for each in self._waiting if each is not target]
            self._tries = 0

    async def _end_attempt(self) -> None:
        """Close what the target has of the recording, and count it off."""
        stream, self._stream = self._stream, None
        if self._sent:
            self._sent = False
            self._parts.load.end(self._current)
        if stream is not None:
            await stream.aclose()

    async def _book_left(self, *, sent: bool) -> None:
        """Book a recording whose client left, or whose key has no room for it; `sent`: a target had it."""
        record, target = self._record, self._target
        if target is not None:
            self._parts.breakers.dropped(target.name)
        if target is not None and sent and not (target.remote is not None and self._passed):
            charged = target.price is not None
            record.estimated = record.estimated or charged
            nano = self._cost(target, None) if charged else 0
            record.attempted(target, "left", time.monotonic() - self._began, nano=nano)
        await self._book_quietly("left")

    async def _book_quietly(self, outcome: Outcome) -> None:
        target = self._target if outcome != "failed" else None
        usage = self._usage
        if target is not None and target.remote is None:
            usage = Usage(0, self._tokens)
        with suppress(LedgerUnavailable):  # the ledger writes it when it can, and says so in its log
            await self._record.book(outcome, target, usage)

    def _drop(self, target: GatewayModel, why: PassedOver) -> None:
        self._choice.drop(target, why)
        self._waiting = [each for each in self._waiting if each is not target]
        self._tries = 0

    # --- money and errors ------------------------------------------------------------------------------

    def _most(self, target: GatewayModel) -> int:
        """Return nano-dollars that the text of a target does not exceed."""
        if target.price is None or self._sound is None:
            return 0
        prompt = len(self._cleared.work.prompt.encode())
        return target.price.most_of_sound(self._sound.seconds, prompt, self._record.at)

    def _cost(self, target: GatewayModel, used: SoundUsage | None) -> int:
        if target.price is None or self._sound is None:
            return 0
        return target.price.of_sound(self._sound.seconds, used, self._record.at)

    def _failure(self) -> FreeholdError:
        """Return one error that names every target, also those that a label kept the recording from."""
        errors = [*self._errors.values()]
        if not errors:
            return self._choice.none_left()
        last = errors[-1]
        if len(self._choice.order) == 1 or all(isinstance(e, BudgetSpent) for e in errors):
            return last
        reasons = {name: why.reason for name, why in self._choice.passed_over.items()}
        reasons |= {name: e.message for name, e in self._errors.items()}
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        waits = [
            e.retry_after_s for e in errors if isinstance(e, UpstreamFault) and e.retry_after_s is not None
        ]
        return UpstreamFault(
            cause_of(last),
            f"no target of {self._planned.name} transcribed the recording: {listed}",
            last.hint,
            status=last.status if isinstance(last, UpstreamFault) else 0,
            retry_after_s=min(waits, default=None),
        )
