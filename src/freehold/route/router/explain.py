"""What a request would meet, without sending it: its labels, each target with a reason, and what it would cost.

The same functions as a request's (labels, routing, prices), with no engine started and no provider asked. A classifier
is not asked either: a label that needs one is taken as set, as it is when the classifier fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.base.errors import FreeholdError
from freehold.base.prompts import PromptSize, prompt_size
from freehold.base.serving import Job, Origin, hears_alone
from freehold.base.types import Usage
from freehold.route.providers.contract import SetLabel
from freehold.route.router.attempts import ANSWER_TOKENS, most_cost
from freehold.route.router.contract import BarCheck
from freehold.route.router.gateway import GatewayModel, SpendLimit
from freehold.route.router.routing import Breakers, GatewayPlan, choose
from freehold.route.router.tokens import TokenRatio


@dataclass(frozen=True, slots=True)
class ExplainedTarget:
    """A target and what would become of it. Costs in nano-dollars."""

    name: str
    place: str
    owned: bool
    verdict: str  # chosen, fallback, skipped
    reason: str
    likely: int  # for the guessed prompt and an answer of max_tokens
    most: int  # what a budget would reserve for it


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a request would meet on a route."""

    route: str
    labels: tuple[SetLabel, ...]
    places: frozenset[str]
    prompt_tokens: int  # guessed
    max_tokens: int
    targets: tuple[ExplainedTarget, ...]
    refused: str  # why no target would answer; "" where one would
    budget: SpendLimit | None  # of the key

    @property
    def reserved(self) -> int:
        """Nano-dollars that the key's budget would set aside: the dearest target that can be reached."""
        return max((t.most for t in self.targets if t.verdict != "skipped"), default=0)


async def explain(
    plan: GatewayPlan, name: str, job: Job, origin: Origin, *, bars: BarCheck | None = None, when: float = 0.0
) -> Explanation:
    """Return what would become of a job.

    Raises UsageError for a label that does not exist, UnsupportedModel for a route that takes recordings.
    """
    planned = plan.route(name) or plan.owned(name)
    if planned.route.hears:
        raise hears_alone(name)
    cleared = await plan.labeller.clear(job, origin, planned.route)
    size = prompt_size(job)
    choice = choose(planned, cleared, size, Breakers(), bars)
    allowed = [target.name for target in choice.allowed]
    error: FreeholdError | None = None if allowed else choice.none_left()
    policy = plan.gateway.keys.get(origin.key)

    def explained(target: GatewayModel) -> ExplainedTarget:
        passed = choice.passed_over.get(target.name)
        verdict = "skipped" if passed is not None else "chosen" if target.name == allowed[0] else "fallback"
        reason = passed.reason if passed is not None else _why(target)
        likely, most = _likely(target, job, size, when), most_cost(target, job, size, when)
        return ExplainedTarget(target.name, target.place, target.owned, verdict, reason, likely, most)

    return Explanation(
        planned.name,
        cleared.labels,
        cleared.places,
        TokenRatio().prompt_tokens(size),
        job.max_tokens or ANSWER_TOKENS,
        tuple(explained(target) for target in choice.order),
        "" if error is None else error.message,
        policy.budget if policy is not None else None,
    )


def _why(target: GatewayModel) -> str:
    remote = target.remote
    if remote is None:
        return "on this machine"
    return f"{remote.model} at {remote.provider.name}{', owned' if target.owned else ''}"


def _likely(target: GatewayModel, job: Job, size: PromptSize, when: float) -> int:
    if target.price is None:
        return 0
    usage = Usage(TokenRatio().prompt_tokens(size), (job.max_tokens or ANSWER_TOKENS) * job.n)
    return target.price.cost(usage, when)
