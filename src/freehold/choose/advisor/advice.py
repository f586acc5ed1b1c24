"""Ranks models for a task under the user's conditions, with reasons, and lists what each rule excluded.

Every model of the catalogue is checked against every rule, so that an answer can name the rule that left nothing. Of
the rest, models whose results reach the task's bar are ranked; models below it, or without any published result, are
listed apart. "Nothing here is good enough" is an answer, with what would be. Knows no machine and no engine: a
`Placer` says where a model would run and how fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from freehold.base.catalog.benchmarks import Task
from freehold.base.catalog.model import TIERS, Model
from freehold.base.catalog.questions import Clause, Question, results_in
from freehold.base.catalog.schema import known
from freehold.base.errors import UsageError
from freehold.choose.advisor import finders
from freehold.choose.advisor.finders import Beside
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.quality import (
    DENIED,
    LanguageEvidence,
    Quality,
    Scale,
    language_evidence,
    languages_known,
    rounded,
)
from freehold.choose.advisor.verdict import Facts, Verdict, verdict

# --- a question in words joined with the options beside it ------------------------------------------
# An option overrides the same condition in words; where they differ, a note says so.
_Value = TypeVar("_Value")
MOST_USERS = 4096  # at a time; no published row is of more
_VOTES = "arena"  # the board whose votes are also counted by the prompt's language, on one scale
_APART = ("beside", "matter", "note")  # parts that an answer names apart from what it rests on


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions an answer is based on. Empty and zero: neither the question nor an option gives them."""

    question: Question
    task: Task
    languages: tuple[str, ...] = ()  # ISO 639-1 codes but English, and "mul"
    reads: tuple[str, ...] = ()  # modalities that a model must read
    on: str = ""
    users: int = 1
    context: int = 0
    max_params: float = 0.0
    budget: float | None = None
    country_not: tuple[str, ...] = ()
    cheapest: bool = False
    purpose: str = ""
    notes: tuple[str, ...] = ()

    @property
    def understood(self) -> tuple[Clause, ...]:
        """The parts of the question that the answer rests on."""
        return tuple(p for p in self.question.parts if p.what not in _APART)


def join(
    question: Question,
    *,
    on: str = "",
    users: int | None = None,
    context: int = 0,
    max_params: float = 0.0,
    budget: float | None = None,
    country_not: Sequence[str] = (),
    languages: Sequence[str] = (),
    cheapest: bool = False,
    sees: bool = False,
) -> Conditions:
    """Join a question with options. Raises UsageError where no task is named, and for invalid values."""
    asked_in = _languages(question, languages)
    task = _in_language(question.task, asked_in)  # raises
    notes = [f"{u.name} beside it: {u.says}" for u in question.unanswered]
    notes += [f"{p.words}: {p.says}" for p in question.parts if p.what in ("note", "beside")]
    if users is not None and not 1 <= users <= MOST_USERS:
        raise UsageError(f"{users:,} users at a time are not within 1..{MOST_USERS:,}")
    said_users = min(question.users, MOST_USERS)
    if question.users > MOST_USERS:
        notes.append(f"{question.users:,} users: answered for {MOST_USERS:,} at a time, the most")
    reads = dict.fromkeys(u.reads for u in question.unanswered if u.reads)
    if sees and "image" not in reads:
        reads["image"] = None
        notes.append(
            "--sees: the catalogue has no results on pictures; models are ranked by their results on text"
        )
    conditions = Conditions(
        question,
        task,
        languages=asked_in,
        reads=tuple(reads),
        on=_one("hardware", on, "" if budget is not None else question.hardware, notes),
        users=int(_one("users", users or 0, said_users, notes)) or 1,
        context=int(_one("context", context, question.context, notes)),
        max_params=_one("size", max_params, question.max_params, notes),
        budget=_one("budget", budget, question.budget or None, notes),
        country_not=tuple(dict.fromkeys((*country_not, *question.country_not))),
        cheapest=cheapest or question.cheapest,
        purpose="commercial" if question.commercial else "",
    )
    return _with_notes(conditions, notes, budget)


def _with_notes(conditions: Conditions, notes: list[str], budget: float | None) -> Conditions:
    question = conditions.question
    if budget is not None and question.hardware:
        notes.append(f"the question says {question.hardware}, --budget says rented hardware: --budget counts")
    if question.private and (conditions.budget is not None):
        notes.append("private: rented hardware is another's; leave the budget out to stay on your own")
    if question.model:
        notes.append(f"{question.model}: freehold why {question.model} answers for this one model")
    return replace(conditions, notes=tuple(notes))


def _in_language(task: Task, codes: Sequence[str]) -> Task:
    """Return a task whose scale is votes with the board in the one language asked for, where there is one."""
    boards = [b for b in results_in(codes[0]) if b.startswith(f"{_VOTES}_")] if len(codes) == 1 else []
    if task.benchmarks[:1] != (_VOTES,) or not boards:
        return task
    return replace(task, benchmarks=(boards[0], *task.benchmarks))


def _languages(question: Question, codes: Sequence[str]) -> tuple[str, ...]:
    """Return the languages asked for but English, which every benchmark is in."""
    for code in codes:
        if not known(code.lower()):
            raise UsageError(
                f"{code!r} is not a language code of ISO 639", "two letters: de, fr, ja; mul: many languages"
            )
    wanted = (*(c.lower() for c in codes), *question.languages)
    return tuple(code for code in dict.fromkeys(wanted) if code != "en")


def _one(what: str, option: _Value, in_question: _Value, notes: list[str]) -> _Value:
    """Return the option where it is given, else what the question says; note where both are and differ."""
    if option and in_question and option != in_question:
        notes.append(f"the question says {what} {in_question}, the option says {option}: the option counts")
    return option or in_question


# --- the rules, and the ranking of what passes them -------------------------------------------------

# rule -> the option that relaxes it; an empty one is the task's own and cannot be relaxed
RULES = {
    "task": "",
    "licence": "--for",
    "country": "--country-not",
    "language": "--language",
    "context": "--min-context",
    "size": "--max-size",
    "held": "--installed",
    "engine": "--engine",
    "memory": "--on",
    "budget": "--budget",
    "users": "--users",
    "speed": "--min-speed",
}
PLACE_RULES = ("engine", "memory", "budget", "users", "speed")  # another machine would lift these
MOST_CONTEXT = 100_000_000
_INSTEAD, _TRIED = 3, 12  # models named where nothing here is good enough, and tried elsewhere to find them
# Tokens a second below which thinking aloud, some 2,400 tokens of it, takes more than a minute: results that took it
# do not count there, unless the task has the patience.
THINKING_PACE = 40
# Tokens of context that a model needs at least which thinks before each answer, where its thinking is what counts:
# DeepSeek's R1 distills write 2,000 to 8,000 tokens on a problem of AIME or GPQA. A judgement.
THINKING_ROOM = 8192


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model would run: `quant` on `engine`, `memory` in bytes at `context` tokens.

    `decode`, `prefill`: tokens a second of each user, `users` at a time, of what finds texts both those read; None: not
    known. `month`: dollars of rent;
    None: not rented. `command` is empty where none is known to run, and `why_none` says why.
    """

    where: str
    engine: str
    quant: str
    memory: int
    context: int
    decode: Interval
    prefill: Interval | None
    command: str
    month: float | None = None
    users: int = 1
    # whether the speeds rest on quiet measurements; if not, only their upper bound rules out
    sure: bool = True
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rule that excludes a model, and the reason in words."""

    rule: str
    why: str


Placer = Callable[[Model, int], Placement | Refusal]


@dataclass(frozen=True, slots=True)
class AdviceRequest:
    """The request. `facts` None: the licence is not judged. `held`: only these ids are considered; None: all are."""

    task: Task
    facts: Facts | None = None
    country_not: tuple[str, ...] = ()  # ISO 3166 codes
    min_context: int = 0  # tokens; 0: what the task needs
    max_params: float = 0.0  # billions; 0: any
    min_speed: float | None = None  # tokens a second; None: the task's pace
    held: Collection[str] | None = None
    reads: tuple[str, ...] = ()  # modalities beside text
    languages: tuple[str, ...] = ()  # ISO 639 codes of those asked for beside English; "mul": many
    cheapest: bool = False  # of those not shown to be worse than the best, what costs least comes first

    def __post_init__(self) -> None:
        """Refuse values that are not a valid country, context or speed."""
        for code in self.country_not:
            if not (len(code) == 2 and code.isascii() and code.isalpha()):
                raise UsageError(
                    f"country {code!r} is not a country code", "write two letters, such as CN or US"
                )
        if not 0 <= self.min_context <= MOST_CONTEXT:
            raise UsageError(f"a context of {self.min_context} tokens is not within 0..{MOST_CONTEXT:,}")
        if self.min_speed is not None and not 0 <= self.min_speed <= 1e6:
            raise UsageError(f"a speed of {self.min_speed} tokens a second is not within 0..1,000,000")

    @property
    def context(self) -> int:
        """The tokens that a conversation must have room for."""
        return self.min_context or self.task.min_context

    @property
    def speed(self) -> float:
        """The tokens a second below which a model is too slow."""
        return self.task.pace if self.min_speed is None else self.min_speed


@dataclass(frozen=True, slots=True)
class Judged:
    """One model checked against every rule; without refusals it is a pick."""

    model: Model
    quality: Quality | None
    verdict: Verdict | None
    placement: Placement | None
    refusals: tuple[Refusal, ...]
    languages: tuple[LanguageEvidence, ...] = ()  # what is known of it in each language asked for
    doubtful: bool = False  # fast enough only by the upper bound of what was measured beside others

    @property
    def lower_bound(self) -> float:
        """The low end of its quality range, in per cent; -1 where nothing is known."""
        return self.quality.range.low if self.quality else -1.0


@dataclass(frozen=True, slots=True)
class Own:
    """How a model did on the user's own cases. `range`: the share passed, in per cent."""

    cases: int
    passed: int
    range: Interval


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer: `picks` best first, and the scale of quality.

    Not picked: `below`, whose range begins below the task's bar; `unproven`, without a published result for this
    task; `ruled_out` by a rule. `instead`: where there is no pick, the smallest models that pass the
    bar on other hardware, placed there. Every model is in exactly one of the first four.
    """

    request: AdviceRequest
    benchmark: str
    picks: tuple[Judged, ...]
    ruled_out: tuple[Judged, ...]
    below: tuple[Judged, ...] = ()
    unproven: tuple[Judged, ...] = ()
    instead: tuple[Judged, ...] = ()
    asked: Conditions | None = None  # what was understood of the question; choosing.py fills it
    beside: Beside | None = None  # what finds the texts of a RAG model; choosing.py fills it
    own: Mapping[str, Own] = field(
        default_factory=dict
    )  # by id, what a user's cases said; own.by_own fills it

    @property
    def runnable(self) -> tuple[Judged, ...]:
        """Models that no rule excludes, good enough or not: picks, then below, then unproven."""
        return (*self.picks, *self.below, *self.unproven)

    @property
    def considered(self) -> int:
        """How many models were checked against the request."""
        return len(self.runnable) + len(self.ruled_out)

    @property
    def bar(self) -> float:
        """Per cent on the scale that a pick's range must lie above; 0: none is set."""
        return self.request.task.bar if self.benchmark else 0.0

    @property
    def relax(self) -> tuple[tuple[str, int], ...]:
        """Which conditions to drop, as options, and how many models each would bring in; most first.

        Where no single one would do, the smallest sets that would.
        """
        return _ways(self.ruled_out)

    @property
    def relax_to_good(self) -> tuple[tuple[str, int], ...]:
        """The same, counting models whose results reach the bar."""
        return _ways(j for j in self.ruled_out if j.lower_bound >= self.bar)

    @property
    def stretched(self) -> tuple[Judged, ...]:
        """Models that only context and place exclude, and whose card stretches the context enough; best first."""
        able = {"context", *PLACE_RULES}
        stretched = [
            j
            for j in self.ruled_out
            if j.model.stretch and j.model.context < self.request.context <= j.model.stretch.context
            if all(r.rule in able for r in j.refusals)
        ]
        return tuple(sorted(stretched, key=lambda j: -j.lower_bound))

    @property
    def by_tier(self) -> dict[str, Judged]:
        """The best model of each size class that only its place excludes, if anything does."""
        best: dict[str, Judged] = {}
        able = [j for j in self.ruled_out if all(r.rule in PLACE_RULES for r in j.refusals)]
        ranked = sorted((*self.picks, *self.below, *able), key=_ordering(self.request.task))
        for judged in by_results(ranked, self.own):
            best.setdefault(judged.model.tier, judged)
        return {tier: best[tier] for tier in TIERS if tier in best}


def by_results(ranked: Sequence[Judged], own: Mapping[str, Own]) -> list[Judged]:
    """Return a ranking in which the tried models share out the places they hold by cases passed.

    In a draw the earlier place wins; a model that was not tried keeps its place.
    """
    order = list(ranked)
    places = [i for i, j in enumerate(order) if j.model.id in own]
    tried = sorted((order[i] for i in places), key=lambda j: -own[j.model.id].passed)
    for place, judged in zip(places, tried, strict=True):
        order[place] = judged
    return order


def _ways(ruled_out: Iterable[Judged]) -> tuple[tuple[str, int], ...]:
    sets = Counter(frozenset(r.rule for r in j.refusals) for j in ruled_out)
    able = {s: n for s, n in sets.items() if all(RULES[rule] for rule in s)}
    least = min(map(len, able), default=0)
    ways = [(" and ".join(RULES[r] for r in RULES if r in s), n) for s, n in able.items() if len(s) == least]
    return tuple(sorted(ways, key=lambda f: -f[1]))


def advise(
    request: AdviceRequest,
    models: Iterable[Model],
    placer: Placer,
    elsewhere: Callable[[], Placer] | None = None,
) -> Advice:
    """Check every model against the request and rank what remains.

    `elsewhere`: where to place models that pass the bar, if none does here; None: they are not looked for.
    """
    known = [m for m in models if m.params_b]
    task = request.task
    scale = Scale(task, known)
    quick = scale if task.quick else scale.without_thinking()
    role = "embedder" if task.encoder else "reranker" if task.reranker else "generator"
    judged = [_judge(m, request, scale, quick, placer) for m in known if m.role == role]
    able = sorted((j for j in judged if not j.refusals), key=_ordering(task))
    bar = task.bar if scale.benchmark else 0.0
    picks = [j for j in able if j.lower_bound >= bar] if scale.benchmark else able
    below = tuple(j for j in able if scale.benchmark and j.quality and j.lower_bound < bar)
    unproven = tuple(j for j in able if scale.benchmark and not j.quality)
    ruled_out = tuple(j for j in judged if j.refusals)
    instead = _instead(request, scale, (*below, *ruled_out), elsewhere()) if elsewhere and not picks else ()
    picks = cheapest_first(picks) if request.cheapest else picks
    return Advice(request, scale.benchmark, tuple(picks), ruled_out, below, unproven, instead)


def _instead(
    request: AdviceRequest, scale: Scale, judged: Iterable[Judged], elsewhere: Placer
) -> tuple[Judged, ...]:
    """Return the smallest models that pass the bar on other hardware, of those that only their place excludes."""
    alternatives: list[Judged] = []
    able = [j for j in judged if all(r.rule in PLACE_RULES for r in j.refusals)]
    passing = [j for j in able if (q := scale.of(j.model)) and q.range.low >= request.task.bar]
    for one in sorted(passing, key=lambda j: j.model.params_b)[:_TRIED]:
        there = _judge(one.model, request, scale, scale, elsewhere)
        if not there.refusals and there.lower_bound >= request.task.bar and len(alternatives) < _INSTEAD:
            alternatives.append(there)
    return tuple(alternatives)


def _ordering(task: Task) -> Callable[[Judged], tuple[bool, int | bool, float, float, str]]:
    if task.encoder or task.reranker:
        return lambda judged: finders.order(judged.model, [t.code for t in judged.languages])
    return _order


def _order(judged: Judged) -> tuple[bool, bool, float, float, str]:
    """Order by published results, or the low end of what is carried over; then by speed.

    Models without a known result in a requested language come after the others.
    """
    standing = judged.quality.standing if judged.quality else -1.0
    speed = judged.placement.decode.mid if judged.placement else 0.0
    return judged.doubtful, not languages_known(judged.languages), -standing, -speed, judged.model.id


def cheapest_first(picks: list[Judged]) -> list[Judged]:
    """Order by cost the models whose range reaches the best one's low end: none is shown to be worse.

    Cost is a month's rent, then memory. The others keep their order.
    """
    if not picks:
        return picks
    able = [j for j in picks if j.quality is None or j.quality.range.high >= picks[0].lower_bound]

    def cost(judged: Judged) -> tuple[float, int, float]:
        place = judged.placement
        assert place is not None  # a pick has one
        return (place.month or 0.0), place.memory, -judged.lower_bound

    return sorted(able, key=cost) + [j for j in picks if j not in able]


def _judge(model: Model, request: AdviceRequest, scale: Scale, quick: Scale, placer: Placer) -> Judged:
    known = language_evidence(model, request.languages)
    refusals = [
        *_facts_against(model, request),
        *(Refusal("language", t.says) for t in known if t.level == DENIED),
    ]
    ruled = None
    if request.facts is not None:
        ruled = verdict(model, request.facts)
        if ruled.answer in ("refused", "unknown"):
            refusals.append(Refusal("licence", _because(ruled)))
    placed = placer(model, _room(model, request))
    if isinstance(placed, Refusal):
        return Judged(model, scale.of(model), ruled, None, (*refusals, placed), known)
    speed = placed.decode.mid if placed.sure else placed.decode.high
    hurried = speed < THINKING_PACE and not request.task.patient
    if speed < request.speed:
        problem = f"{speed:.3g} tokens a second, where the request needs {request.speed:g}"
        refusals.append(Refusal("speed", problem))
    elif hurried and model.thinking == "only" and request.min_speed is None:
        problem = f"thinks aloud before it answers: minutes, at {speed:.3g} tokens a second"
        refusals.append(Refusal("speed", problem))
    doubtful = placed.decode.mid < request.speed <= speed
    quality = (None if hurried else scale.of(model)) or quick.of(model)
    quality = quality and rounded(quality, placed.quant, model)
    return Judged(model, quality, ruled, placed, tuple(refusals), known, doubtful)


def _room(model: Model, request: AdviceRequest) -> int:
    """Return the tokens of context to place a model with: those asked for, and room for its thoughts."""
    thinks = model.thinking == "only" and request.task.patient and not request.min_context
    wanted = max(request.context, THINKING_ROOM) if thinks else request.context
    return min(wanted, model.context) if model.context else wanted


def _facts_against(model: Model, request: AdviceRequest) -> Iterable[Refusal]:
    """Yield the facts of a model that exclude it; an unknown fact does, too."""
    task = request.task
    if model.instructed is False and not task.base_too:
        yield Refusal("task", "a base model: it continues text and follows no instruction")
    if task.fills and not model.fills:
        yield Refusal("task", "not known to fill in the middle, as an editor asks")
    if task.quick and model.thinking == "only":
        yield Refusal("task", "thinks aloud before each answer")
    if missing := [m for m in request.reads if m not in model.modalities]:
        yield Refusal("task", f"does not read {' and '.join(missing)}s")
    if task.tools and model.tools is not True:
        yield Refusal("task", "not known to call tools" if model.tools is None else "calls no tools")
    if request.country_not:
        barred = {c.upper() for c in request.country_not}
        if countries := barred.intersection(model.countries):
            yield Refusal("country", f"made in {', '.join(sorted(countries))}")
        elif not model.countries:
            yield Refusal("country", "where it was made is not known")
    if model.context < request.context and (model.context or request.min_context):
        problem = f"its context is {model.context:,} tokens" if model.context else "its context is not known"
        yield Refusal("context", problem + (model.stretch.says if model.stretch else ""))
    if request.max_params and min(model.params_b, model.called_b) > request.max_params:
        yield Refusal("size", f"{model.params_b:g} billion parameters")
    if request.held is not None and model.id not in request.held:
        yield Refusal("held", "not on this machine")


def _because(ruled: Verdict) -> str:
    """Return why a licence excludes it: the first deciding clause, or the fact that would decide."""
    first = ruled.deciding[0]
    waits = f" ({', '.join(w.replace('_', ' ') for w in first.waits_for)}?)" if first.waits_for else ""
    where = f" [{first.licence}, {first.clause}]" if first.licence else ""
    return f"{ruled.answer}{waits}: {first.sentence}{where}"


# --- reorders a ranking made of published results by a user's own cases -----------------------------
# Models that ran the same cases are sorted by cases passed, within the places that they had; in a draw the
# earlier place wins. A model that was not tried keeps its place. One below the bar or without a published
# result joins the ranking's end once tried. So own evidence outranks published evidence among tried models
# and leaves others alone.


def by_own(advice: Advice, own: Mapping[str, Own]) -> Advice:
    """Return the advice with the tried models, by id, in the order of their own results."""
    apart = [j for j in (*advice.below, *advice.unproven) if j.model.id in own]
    picks = by_results([*advice.picks, *apart], own)
    below = tuple(j for j in advice.below if j not in apart)
    unproven = tuple(j for j in advice.unproven if j not in apart)
    return replace(advice, picks=tuple(picks), below=below, unproven=unproven, own=dict(own))


# --- chooses the first models of a person who names none --------------------------------------------
# What runs well here, can be fetched here, and answers.
# The order is that of `freehold advise chat`. Models without a published result come after those with one,
# larger ones first: among small chat models, size is the best predictor that is always known.

PACE = 10.0  # tokens a second that a first model reaches at least: about twice the speed of reading
# Bytes of a model that was not named: five minutes at 100 Mbit/s. A larger one is asked for by name.
MOST_DOWNLOAD = 4_000_000_000
SHOWN = 3
_PACKED_TOO = 2  # a packed copy takes about as much as the file


@dataclass(frozen=True, slots=True)
class Download:
    """A model's file: its size, and where it comes from: here, hub or package index."""

    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Starter:
    """A model to begin with. `name`: what `run` and `pull` take. `speed`: tokens a second, predicted for here."""

    name: str
    model: Model
    download: Download
    memory: int  # bytes while it runs
    speed: Interval
    pace: float  # what of `speed` counts: the middle, or the high end where others computed while it was measured

    @property
    def held(self) -> bool:
        """Whether its file is on this machine."""
        return self.download.source == "here"

    @property
    def disk(self) -> int:
        """Bytes on the disk once it ran: the file and its packed copy, about."""
        return self.download.bytes * _PACKED_TOO

    @property
    def about(self) -> str:
        """One line on the model: its maker, what it was made for, its languages and its licence."""
        model = self.model
        purpose = "code and chat" if "coder" in self.name else "chat"
        languages = max(len(model.languages), model.languages_stated)
        spoken = (
            f"{languages} languages" if languages > 1 else "English" if model.languages == ("en",) else ""
        )
        return ", ".join(filter(None, (f"{model.lab}: {purpose}", spoken, model.licence)))


def starters(
    advice: Advice, download: Callable[[Model], Download | None], count: int = SHOWN
) -> tuple[Starter, ...]:
    """Return the best `count` models of an advice for chats that can be had here; `download` None: it cannot be.

    `advice`: for any speed. Models of PACE or more come in its order; where there is none, the fastest come first.
    Left out are base models, which continue a text instead of answering, models that always reason first, and
    downloads above MOST_DOWNLOAD.
    """
    unproven = sorted(advice.unproven, key=lambda j: (-j.model.params_b, j.model.id))
    ranked = (_starter(judged, download) for judged in (*advice.picks, *advice.below, *unproven))
    able = [s for s in ranked if s is not None]
    fast = [s for s in able if s.pace >= PACE]
    return tuple((fast or sorted(able, key=lambda s: -s.pace))[:count])


def _starter(judged: Judged, download: Callable[[Model], Download | None]) -> Starter | None:
    model, placed = judged.model, judged.placement
    if not model.name or placed is None or model.instructed is False or model.thinking == "only":
        return None
    fetched = download(model)
    if fetched is None or (fetched.bytes > MOST_DOWNLOAD and fetched.source != "here"):
        return None
    pace = placed.decode.mid if placed.sure else placed.decode.high
    return Starter(model.name, model, fetched, placed.memory, placed.decode, pace)
