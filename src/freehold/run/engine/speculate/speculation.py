"""Decides how many draft tokens a step verifies beside each sequence's newest one.

Knows drafts, their acceptance rates and what steps of this many tokens cost; knows no logits. A draft token is
verified by equality, since sampling is a function of logits, history, seed and position: whatever is decided
here changes the time of an answer and no token of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from freehold.base.errors import NonFiniteLogits, UsageError
from freehold.run.engine.constrain.constraint import TokenMatcher
from freehold.run.engine.schedule.budget import ITL_FACTOR, STEP_S, StepCost
from freehold.run.engine.schedule.scheduler import Scheduler
from freehold.run.engine.schedule.shares import DEAR_S, grammar_s
from freehold.run.engine.sequence import PICTURE_IDS, ScheduledChunk, Sequence
from freehold.run.engine.speculate.draft import (
    FORCED_PRIOR,
    MARGIN,
    MATCH_PRIOR,
    MAX_DRAFT,
    AcceptanceRates,
    Draft,
    NgramLookup,
    best_extra,
)
from freehold.run.engine.speculate.draft_model import MAX_AHEAD, MAX_JOINED

BASE_SAMPLES = 2  # plain steps that must be measured first,
MODEL_SAMPLES, PLAIN_EVERY = 4, 64  # before a model or a head drafts, and again after this many steps
ALLOWANCE = 1.5  # plain steps an answer may lose by rejected drafts before any was accepted,
TRICKLE = 0.01  # and the share of its time that it may lose beyond
MAX_CREDIT = 8.0  # plain steps gained that may be lost again; by trials, all answers together
MAX_DRAFTED = 8  # sequences in a step beyond which a draft model's own steps cannot pay
CATCH_UP = 0.1  # share of the rest of an answer's time that a draft model may take to prefill what it missed,
ANSWER = 256  # at most this many tokens remain: few answers are longer


@dataclass(slots=True)
class SequenceDrafts:
    """What speculation keeps of one sequence: acceptance rates by source, and the draft of the present step."""

    lookup: NgramLookup
    modelled: AcceptanceRates  # of what a draft model or a head drafts
    matched: AcceptanceRates = field(default_factory=lambda: AcceptanceRates(MATCH_PRIOR))
    forced: AcceptanceRates = field(default_factory=lambda: AcceptanceRates(FORCED_PRIOR))
    credit: float = ALLOWANCE  # plain steps it may lose
    draft: Draft | None = None  # of this step, verified or not

    def match(self, most: int) -> None:
        """Draft by n-gram lookup."""
        match = self.lookup.find(most)
        self.draft = None if match is None else Draft.of_match(self.matched, match)

    def keep_words(self) -> None:
        """Cut the draft before a picture's row, which no answer has."""
        if self.draft is not None:
            rows = (i for i, token in enumerate(self.draft.tokens) if token >= PICTURE_IDS)
            self.draft.cut(next(rows, len(self.draft.tokens)))

    def constrain(self, matcher: TokenMatcher, most: int) -> None:
        """Cut what a grammar forbids; draft what it forces, where the lookup does not say the same.

        A parser that fails or has used up its time drafts nothing: the answer's next mask says so, and ends it alone.
        """
        try:
            forced = matcher.forced()[:most]
            if forced and (self.draft is None or self.draft.tokens[: len(forced)] != forced):
                self.draft = Draft.of_grammar(self.forced, forced)
            elif self.draft is not None:
                self.draft.cut(matcher.count_valid(self.draft.tokens))
        except UsageError:
            self.draft = None

    @property
    def first_rate(self) -> float:
        """The acceptance rate of the draft's first token; 0 without a draft."""
        return self.draft.rates[self.draft.buckets[0]] if self.draft and self.draft.buckets else 0.0


class Drafter(Protocol):
    """A source that computes drafts: a draft model, or the model's own head."""

    rates: AcceptanceRates  # of all sequences; those of a new one begin with them
    spent: float  # seconds, as its steps usually take them, since the caller last set it to 0

    def seconds(self, tokens: int, target_step: float) -> float:
        """Return what computing this many tokens takes; `target_step` is what a step of the target takes."""
        ...

    def missing(self, seq: Sequence) -> int:
        """Return how many tokens of `seq` must be computed before one can be drafted."""
        ...

    def follow(self, seq: Sequence, ahead: int) -> int:
        """Compute what is missing but the newest; return how many tokens may be drafted then, at most `ahead`."""
        ...

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft one more token of each sequence; return it with the probability the source gives it.

        A source whose rates go by place gives none.
        """
        ...

    def forget(self, seq: Sequence) -> None:
        """Drop what is kept of a sequence that ended."""
        ...


class Speculation:
    """Drafts for all live sequences; `draft_model` is used where the text does not repeat itself."""

    def __init__(self, cost: StepCost, draft_model: Drafter | None = None) -> None:
        self.cost = cost  # the scheduler updates it
        self._source = draft_model  # which keeps something of sequences even after it was given up
        self._draft_model = draft_model
        self._drafts: dict[Sequence, SequenceDrafts] = {}
        # Plain steps that drafts which do not promise to pay may lose, over all sequences: of a credit of its own each
        # answer would lose as much, which a short one would notice.
        self._trials = ALLOWANCE
        self._since_plain = 0  # steps since plain decoding was measured
        self._plain = 0  # sequences of this step, if it has nothing but their newest tokens and drafts
        self.draft_s = 0.0  # seconds the draft model took before it

    def forget(self, seq: Sequence) -> None:
        """Drop what is kept of a sequence that ended."""
        self._drafts.pop(seq, None)
        if self._source is not None:
            self._source.forget(seq)

    # --- before the step ---------------------------------------------------------------------------

    def extend(self, batch: list[ScheduledChunk], scheduler: Scheduler) -> list[ScheduledChunk]:
        """Return the step with drafts to verify; the same step where none would pay, or where it has prefill."""
        self._plain, self.draft_s = 0, 0.0
        if scheduler.budget.measuring or not all(chunk.decodes for chunk in batch):
            return batch
        self._plain = len(batch)
        drafts = [self._drafts_of(chunk.seq) for chunk in batch]
        for each, chunk in zip(drafts, batch, strict=True):
            most = min(MAX_DRAFT, chunk.seq.left - 1)
            each.match(most)
            if chunk.seq.request.pictures is not None:
                each.keep_words()
            if grammar_s(chunk.seq) > DEAR_S:  # looking ahead would take it several times as long
                each.draft = None
            elif chunk.seq.matcher is not None:
                each.constrain(chunk.seq.matcher, most)
        if self.cost.count(self._plain) < BASE_SAMPLES:  # the cost of plain decoding must be known first
            return batch
        if self._draft_model is not None and self._plain <= MAX_DRAFTED and not self._measures():
            started, self._draft_model.spent = perf_counter(), 0.0
            try:
                self._ask_model(self._draft_model, batch, drafts)
            except NonFiniteLogits:  # a damaged draft model does not end an answer: continue without it
                self._draft_model = None
            self.draft_s = perf_counter() - started
        most = scheduler.budget.max_num_batched_tokens - self._plain
        counts = self._counts(drafts, most, scheduler.budget.longest_s)
        return [
            scheduler.with_draft(chunk, each.draft.tokens[:count]) if count and each.draft else chunk
            for chunk, each, count in zip(batch, drafts, counts, strict=True)
        ]

    def _measures(self) -> bool:
        """Tell whether a model drafts nothing for this step, since drafts are priced by what plain decoding takes.

        The first steps of an engine are slower than later ones, and where each step has drafts no other would say so.
        """
        self._since_plain += 1
        if self._since_plain <= PLAIN_EVERY and self.cost.count(self._plain) >= MODEL_SAMPLES:
            return False
        self._since_plain = 0
        return True

    def _drafts_of(self, seq: Sequence) -> SequenceDrafts:
        known = self._drafts.get(seq)
        if known is None:
            modelled = AcceptanceRates(()) if self._source is None else self._source.rates.of_sequence()
            known = self._drafts[seq] = SequenceDrafts(NgramLookup(seq.tokens), modelled)
        return known

    def _counts(self, drafts: list[SequenceDrafts], most: int, longest_s: float) -> list[int]:
        """Return how many tokens of each draft pay, likeliest first over all sequences, in a step of `longest_s`."""
        ranked = [
            (-gain, i)
            for i, each in enumerate(drafts)
            if each.draft is not None and each.credit > 0.0
            for gain in each.draft.gains()
        ]
        counts = [0] * len(drafts)
        if ranked and most > 0:
            ranked.sort()
            del ranked[most:]
            longest = min(max(STEP_S, ITL_FACTOR * self.cost.seconds(len(drafts))), longest_s)
            fits = lambda tokens: self.cost.at_most(tokens) <= longest  # noqa: E731
            extra = best_extra([-gain for gain, _ in ranked], len(drafts), self.cost.seconds, fits)
            for _, i in ranked[:extra]:
                counts[i] += 1
        return counts

    # --- the draft model ---------------------------------------------------------------------------

    def _ask_model(self, model: Drafter, batch: list[ScheduledChunk], drafts: list[SequenceDrafts]) -> None:
        """Draft with the model where the lookup is less likely to be right, token by token, as long as that pays."""
        # Index of a sequence, and the probability that its draft is accepted.
        going: list[tuple[int, float]] = []
        ahead = [0] * len(batch)
        for i in self._worth_starting(model, batch, drafts):
            seq = batch[i].seq
            ahead[i] = model.follow(seq, min(MAX_AHEAD, seq.left - 1))
            if ahead[i] > 0:
                drafts[i].draft = Draft(drafts[i].modelled)
                going.append((i, 1.0))
        drafted = length = 0
        expected = float(self._plain)  # tokens of the step
        while going:
            tokens = model.advance([batch[i].seq for i, _ in going])
            drafted, length = drafted + len(going), length + 1
            accepted = [
                (i, chance * draft.add(*token))
                for (i, chance), token in zip(going, tokens, strict=True)
                if (draft := drafts[i].draft)
            ]
            expected += sum(chance for _, chance in accepted)
            # A further token must be worth more than the tokens that the same time makes at the present rate.
            price = self._price(model, len(going), drafted) * self._speedup(model, drafted, expected)
            going = [
                (i, chance)
                for i, chance in accepted
                if chance * drafts[i].modelled.expected(length) > price and length < ahead[i]
            ]

    def _worth_starting(
        self, model: Drafter, batch: list[ScheduledChunk], drafts: list[SequenceDrafts]
    ) -> list[int]:
        """Return the sequences of which a first token pays together, as its cost is shared by them."""
        able = [
            i
            for i, (chunk, each) in enumerate(zip(batch, drafts, strict=True))
            if each.credit > 0.0 and chunk.seq.left > 1 and each.first_rate < each.modelled.expected(0)
        ]
        while able:
            price = self._price(model, len(able), 0)
            worth = [
                i for i in able if self._pays(model, batch[i].seq, drafts[i].modelled.expected(0), price)
            ]
            if len(worth) == len(able):
                break
            able = worth
        return able

    def _pays(self, model: Drafter, seq: Sequence, rate: float, price: float) -> bool:
        """Tell whether a first token is worth its price: after a long absence its prefill counts too.

        One that is not may be a trial, as rates change; it costs of what trials may lose.
        """
        step, missing = self.cost.seconds(self._plain), model.missing(seq)
        prefill = model.seconds(missing, step) / step if missing > MAX_JOINED else 0.0
        if prefill > CATCH_UP * min(seq.left, ANSWER):
            return False
        return 1.0 + rate > MARGIN * (1.0 + price) or self._trials > prefill + 2 * price

    def _price(self, model: Drafter, going: int, drafted: int) -> float:
        """Return the tokens that plain decoding would make while one more each is drafted and verified."""
        tokens = self._plain + drafted
        step = self.cost.seconds(self._plain)
        verifying = self.cost.seconds(tokens + going) - self.cost.seconds(tokens)
        return (model.seconds(going, step) + verifying) / going * self._plain / step

    def _speedup(self, model: Drafter, drafted: int, expected: float) -> float:
        """Return how many times the tokens of plain decoding the step makes as drafted so far; 1 at least."""
        seconds = self.cost.seconds(self._plain + drafted) + model.spent
        return max(expected / self._plain * self.cost.seconds(self._plain) / seconds, 1.0)

    # --- after the step ----------------------------------------------------------------------------

    def learn(self, batch: list[ScheduledChunk]) -> None:
        """Update rates and credits by what was accepted, after the scheduler has learnt the step's cost."""
        if self._plain:
            self._account(batch)
        for chunk in batch:
            if chunk.seq.done:
                self.forget(chunk.seq)

    def _account(self, batch: list[ScheduledChunk]) -> None:
        tokens = sum(chunk.num_tokens for chunk in batch)
        plain_s = self.cost.seconds(self._plain)
        generated = [chunk.seq.tokens[chunk.first + 1 :] for chunk in batch]
        drafting_s = self._draft_model.spent if self.draft_s and self._draft_model else 0.0
        gained = sum(map(len, generated)) / self._plain - (self.cost.seconds(tokens) + drafting_s) / plain_s
        self._trials = min(self._trials + TRICKLE + (gained if drafting_s else 0.0), MAX_CREDIT)
        for chunk, ids in zip(batch, generated, strict=True):
            drafts = self._drafts[chunk.seq]
            if drafts.draft is not None:
                drafts.draft.learn(ids)
            if tokens > self._plain or drafting_s:
                drafts.credit += gained
            drafts.credit = min(drafts.credit + TRICKLE, MAX_CREDIT)
            chunk.seq.num_draft_tokens += len(chunk.draft)
            chunk.seq.num_accepted_tokens += max(len(ids) - 1, 0)
