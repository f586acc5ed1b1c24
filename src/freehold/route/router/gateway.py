"""What gateway.toml says, read and checked: providers, models, labels, routes, tasks, keys.

Values only; reading.py makes them, and refuses what does not fit together. Defaults and ranges of plain fields are
declared here, and read by `TomlTable.fields`. Money is in nano-dollars, so that sums are exact. Knows no request.

The licence or the terms under which a model answers, and whether its answers may train another model, are the
catalogue's facts (catalog/data/licences), cut to one word for the ledger. Where a licence lets outputs train on
conditions the word is "unknown": `freehold license --taught-by` judges those with the user's facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from freehold.base.errors import FreeholdError
from freehold.route.providers.contract import HOUSE, KINDS, NO_KIND, Provider, RemoteModel
from freehold.route.router.price import Price

if TYPE_CHECKING:
    from freehold.base.catalog.licence import Licence

Period = Literal["hour", "day", "week", "month"]
Spread = Literal["in-order", "least-busy"]
TRANSCRIPTION = "transcription"  # the task of routes that take recordings, and of their rows in the ledger


@dataclass(frozen=True, slots=True)
class GatewayModel:
    """A name that a request or a route may use, and what answers it."""

    name: str
    local: str = ""  # a model of the local store,
    remote: RemoteModel | None = None  # or one at a provider
    price: Price | None = None  # None: costs nothing a token (owned)
    terms: str = ""  # licence id, or the provider's terms, as the ledger keeps them
    may_teach: bool | None = None  # whether answers may train other models; None: unknown

    @property
    def place(self) -> str:
        """The place a request is at when this model answers it."""
        return self.remote.provider.name if self.remote is not None else HOUSE

    @property
    def owned(self) -> bool:
        """Whether it runs on a machine of the house."""
        return self.remote is None or self.remote.provider.owned


@dataclass(frozen=True, slots=True)
class Label:
    """Where a labelled request may be. `stay` None: on any owned machine; otherwise names of providers too."""

    name: str
    stay: frozenset[str] | None = None
    detect: tuple[str, ...] = ()  # detectors that set it: pii, secrets
    patterns: tuple[str, ...] = ()  # expressions (RE2) that set it
    classifier: str = ""  # an owned model that is asked; "" for none


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """After `failures` in a row a target is left alone for `cooldown_s`."""

    failures: Annotated[int, Meta(ge=1, le=1000)] = 3
    cooldown_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Escalation:
    """A cascade: the first `check` tokens are looked at, then sent, or thrown away for the next target."""

    # The mean log-probability (natural) is compared as a probability: exp(mean) < below escalates.
    below: Annotated[float, Meta(gt=0, le=1)]
    check: Annotated[int, Meta(ge=1, le=4096)] = 64
    when: Literal["logprob"] = "logprob"


@dataclass(frozen=True, slots=True)
class Shadow:
    """A share of requests is asked of another target too, whose answer only the ledger sees."""

    target: str
    share: Annotated[float, Meta(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Graduation:
    """A route's own model, taught by the answers that it rents (freehold graduate)."""

    student: str  # a model of the local store, which is taught
    at: Annotated[int, Meta(ge=8, le=1_000_000)] = 300  # examples from which it is taught
    spend_nano: int = 0  # nano-dollars that answers which are missing may cost
    judge: Literal["cases", "answers"] = "cases"  # the task's own cases, or equal answers to kept texts
    share: Annotated[float, Meta(gt=0, le=1)] = 0.02  # of its answers that are compared with the teacher's
    by_itself: bool = True  # the server teaches it while it has nothing else to do
    idle_s: float = 60.0  # without a request, after which it does


@dataclass(frozen=True, slots=True)
class GatewayRoute:
    """Targets, asked in this order or the least busy first."""

    name: str
    targets: tuple[str, ...]  # names of GatewayModels
    spread: Spread = "in-order"
    task: str = ""
    labels: tuple[str, ...] = ()  # every request of the route has them
    timeout_s: float = 600.0
    first_token_s: float = 30.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 1  # of one target, before the next
    breaker: BreakerLimits = BreakerLimits()
    escalate: Escalation | None = None
    shadow: Shadow | None = None
    # Answers of equal requests of one key and one set of labels are kept so long; 0: not.
    cache_s: float = 0.0
    keep_text: bool = False  # keep = "text": prompts and answers are kept, of requests without labels
    # Its answers will train a model: targets whose terms do not allow that are passed over.
    may_teach: bool = False
    graduate: Graduation | None = None

    @property
    def hears(self) -> bool:
        """Whether it takes recordings, and no texts."""
        return self.task == TRANSCRIPTION


@dataclass(frozen=True, slots=True)
class QualityTask:
    """A task whose bar a target has to reach with the lower end of its 95 % interval (freehold bar run)."""

    name: str
    bar: Annotated[float, Meta(ge=0, le=1)]
    file: str = ""  # its JSONL, absolute


@dataclass(frozen=True, slots=True)
class SpendLimit:
    """A budget: nano-dollars a period, which begins at midnight UTC, on Mondays or on the first."""

    nano: int
    per: Period


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What the gateway knows of a key; the key itself is in keys.json."""

    name: str
    budget: SpendLimit | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A whole file, sound."""

    providers: Mapping[str, Provider] = field(default_factory=dict)
    models: Mapping[str, GatewayModel] = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)
    routes: Mapping[str, GatewayRoute] = field(default_factory=dict)
    tasks: Mapping[str, QualityTask] = field(default_factory=dict)
    keys: Mapping[str, KeyPolicy] = field(default_factory=dict)
    ledger: str = ""  # its file; "" for ledger.sqlite of the home
    digest: str = ""  # SHA-256 of the file, for the log of reloads

    @property
    def owned_places(self) -> frozenset[str]:
        """Where requests may be that must stay owned."""
        return frozenset({HOUSE, *(p.name for p in self.providers.values() if p.owned)})

    @property
    def all_places(self) -> frozenset[str]:
        """This machine and every provider."""
        return frozenset({HOUSE, *self.providers})

    def allowed(self, labels: Iterable[str]) -> frozenset[str]:
        """Return where a request with these labels may be: this machine, and every provider that all of them allow.

        `stay` of a label names places beside this machine, where the request is already.
        """
        places = self.all_places
        for name in labels:
            stay = self.labels[name].stay
            places &= self.owned_places if stay is None else stay | {HOUSE}
        return places


# --- terms under which a model answers -------------------------------------------------------------


@lru_cache(maxsize=1024)
def terms_of(kind: str, model: str, rented: bool) -> tuple[str, bool | None]:
    """Return a licence's id, "" where none is known, and whether answers may teach; None: unknown, or on conditions.

    `rented`: from a seller, whose own terms hold; they are known for the KINDS that name them.
    """
    services = KINDS.get(kind, NO_KIND).terms if rented else ""
    try:
        expression, may = _of(services, model)
    except FreeholdError:
        return "", None
    if rented and not services and may:
        may = None  # the weights' licence allows it; the seller's terms are not known
    return expression, may


def _of(service: str, model: str) -> tuple[str, bool | None]:
    from freehold.base.catalog.licence import licence
    from freehold.choose.advisor.lineage import standing, subject

    expression_of = subject(licence(service) if service else model)
    words = [_teaches(each.choices) for each in standing(expression_of)]
    if False in words:
        return expression_of.expression, False
    return expression_of.expression, True if words and None not in words else None


def _teaches(choices: Sequence[Licence]) -> bool | None:
    """Say what the licences to choose from let outputs do; a permissive one claims nothing of them."""
    effects = {term.effect for each in choices for term in each.about("outputs")}
    if "refuses" in effects:
        return False
    permissive = bool(choices) and all(each.kind == "permissive" for each in choices)
    return True if permissive or ("grants" in effects and "unknown" not in effects) else None
