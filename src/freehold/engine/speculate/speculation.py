"""Decides how many guessed tokens a step verifies beside each sequence's newest one.

Knows guesses, how often such guesses held, and what steps of so many rows cost; knows no logits. A guess is
checked by equality, since sampling is a function of logits, history, seed and position: whatever is decided
here changes the time of an answer and no token of it.
Path: Scheduler.schedule -> Speculation.extend -> ModelRunner.run -> Engine._postprocess -> Speculation.learn
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

from freehold.engine.constrain.guide import Guide
from freehold.engine.schedule.budget import ITL_FACTOR, STEP_S
from freehold.engine.schedule.chunk import ScheduledChunk
from freehold.engine.schedule.cost import StepCost, best_extra
from freehold.engine.schedule.scheduler import Scheduler
from freehold.engine.sequence import Sequence
from freehold.engine.speculate.draft import JOINED, MOST_AHEAD, DraftModel
from freehold.engine.speculate.guess import DRAFT_PRIOR, FORCED_PRIOR, MATCH_PRIOR, Chances, Guess
from freehold.engine.speculate.lookup import MAX_DRAFT, Lookup
from freehold.errors import NonFiniteLogits

BASE_SAMPLES = 2  # plain steps that must be measured first
ALLOWANCE = 1.5  # plain steps an answer may lose by wrong guesses before some have won,
TRICKLE = 0.015  # and the share of its time that it may lose beyond
MOST_CREDIT = 8.0  # plain steps of winnings that may be lost again
MOST_DRAFTED = 8  # sequences in a step beyond which a draft model's own steps cannot pay
CATCH_UP = 0.1  # share of the rest of an answer's time that a draft model may take to read what it missed,
ANSWER = 256  # the rest being at most so many tokens: few answers are longer


@dataclass(slots=True)
class Hopes:
    """What speculation knows of one sequence."""

    lookup: Lookup
    matched: Chances = field(default_factory=lambda: Chances(MATCH_PRIOR))
    drafted: Chances = field(default_factory=lambda: Chances(DRAFT_PRIOR))
    forced: Chances = field(default_factory=lambda: Chances(FORCED_PRIOR))
    credit: float = ALLOWANCE  # plain steps it may lose
    guess: Guess | None = None  # of this step, verified or not

    def match(self, most: int) -> None:
        """Guess by lookup."""
        found = self.lookup.find(most)
        self.guess = None if found is None else Guess.of_match(self.matched, found)

    def fit(self, guide: Guide, most: int) -> None:
        """Leave out what a format forbids; guess what it forces, where the lookup does not say the same."""
        forced = guide.forced()[:most]
        if forced and (self.guess is None or self.guess.tokens[: len(forced)] != forced):
            self.guess = Guess.of_format(self.forced, forced)
        elif self.guess is not None:
            self.guess.cut(guide.fitting(self.guess.tokens))

    @property
    def first(self) -> float:
        """The chance that the guess's first token holds."""
        return self.guess.chances[self.guess.kinds[0]] if self.guess and self.guess.kinds else 0.0


class Speculation:
    """Guesses for all live sequences; `drafter` joins in where the text does not repeat itself."""

    def __init__(self, cost: StepCost, drafter: DraftModel | None = None) -> None:
        self.cost = cost  # the scheduler learns it
        self._drafter = drafter
        self._hopes: dict[Sequence, Hopes] = {}
        self._plain = 0  # sequences of this step, if it has nothing but their newest tokens and guesses
        self.draft_s = 0.0  # seconds the draft model took before it

    def forget(self, seq: Sequence) -> None:
        """Drop what is held for a sequence that ended."""
        self._hopes.pop(seq, None)
        if self._drafter is not None:
            self._drafter.forget(seq)

    # --- before the step ---------------------------------------------------------------------------

    def extend(self, batch: list[ScheduledChunk], scheduler: Scheduler) -> list[ScheduledChunk]:
        """Return the step with guesses to verify; the same step where none would pay, or prompts are in it or wait."""
        self._plain, self.draft_s = 0, 0.0
        if scheduler.budget.measuring or not all(chunk.decodes for chunk in batch):
            return batch
        self._plain = len(batch)
        hopes = [self._hopes_of(chunk.seq) for chunk in batch]
        for hope, chunk in zip(hopes, batch, strict=True):
            most = min(MAX_DRAFT, chunk.seq.left - 1)
            hope.match(most)
            if chunk.seq.guide is not None:
                hope.fit(chunk.seq.guide, most)
        if self.cost.count(self._plain) < BASE_SAMPLES:  # what plain decoding costs must be known first
            return batch
        if self._drafter is not None and self._plain <= MOST_DRAFTED:
            started, self._drafter.spent = perf_counter(), 0.0
            try:
                self._draft(self._drafter, batch, hopes)
            except NonFiniteLogits:  # its damage is no fault of the answer: go on without it
                self._drafter = None
            self.draft_s = perf_counter() - started
        counts = self._shares(hopes, scheduler.budget.most_rows - self._plain)
        return [
            scheduler.lengthened(chunk, hope.guess.tokens[:count]) if count and hope.guess else chunk
            for chunk, hope, count in zip(batch, hopes, counts, strict=True)
        ]

    def _hopes_of(self, seq: Sequence) -> Hopes:
        hope = self._hopes.get(seq)
        if hope is None:
            hope = self._hopes[seq] = Hopes(Lookup(seq.tokens))
        return hope

    def _shares(self, hopes: list[Hopes], most: int) -> list[int]:
        """Share out the rows that pay among the sequences' guesses, likeliest first."""
        ranked = [
            (-gain, i)
            for i, hope in enumerate(hopes)
            if hope.guess is not None and hope.credit > 0.0
            for gain in hope.guess.gains()
        ]
        counts = [0] * len(hopes)
        if ranked and most > 0:
            ranked.sort()
            del ranked[most:]
            longest = max(STEP_S, ITL_FACTOR * self.cost.seconds(len(hopes)))
            fits = lambda rows: self.cost.at_most(rows) <= longest  # noqa: E731
            extra = best_extra([-gain for gain, _ in ranked], len(hopes), self.cost.seconds, fits)
            for _, i in ranked[:extra]:
                counts[i] += 1
        return counts

    # --- the draft model ---------------------------------------------------------------------------

    def _draft(self, drafter: DraftModel, batch: list[ScheduledChunk], hopes: list[Hopes]) -> None:
        """Let the draft model guess where the lookup is less likely to be right, as long as that pays."""
        going: list[tuple[int, float]] = []  # which sequence, and the chance that all its guesses hold
        ahead = [0] * len(batch)
        for i, (chunk, hope) in enumerate(zip(batch, hopes, strict=True)):
            if hope.first < hope.drafted.any and self._worth_starting(drafter, chunk.seq, hope):
                ahead[i] = drafter.follow(chunk.seq, min(MOST_AHEAD, chunk.seq.left - 1))
                if ahead[i] > 0:
                    hope.guess = Guess(hope.drafted)
                    going.append((i, 1.0))
        drafted = each = 0
        while going:
            guesses = drafter.advance([batch[i].seq for i, _ in going])
            drafted, each = drafted + len(going), each + 1
            price = self._price(drafter, len(going), drafted)
            hoped = [
                (i, chance * guess.add(*made))
                for (i, chance), made in zip(going, guesses, strict=True)
                if (guess := hopes[i].guess)
            ]
            going = [
                (i, chance)
                for i, chance in hoped
                if chance * hopes[i].drafted.any > price and each < ahead[i]
            ]

    def _worth_starting(self, drafter: DraftModel, seq: Sequence, hope: Hopes) -> bool:
        """Tell whether a first guess pays: after a long absence its reading counts, and doubt costs credit."""
        step = self.cost.seconds(self._plain)
        missing = drafter.missing(seq)
        reading = drafter.seconds(missing, step) / step if missing > JOINED else 0.0
        if seq.left < 2 or reading > CATCH_UP * min(seq.left, ANSWER):
            return False
        price = self._price(drafter, 1, 0)
        return hope.credit > 0.0 and (hope.drafted.any > price or hope.credit > reading + 2 * price)

    def _price(self, drafter: DraftModel, going: int, drafted: int) -> float:
        """Return the tokens that plain decoding would make while one more guess each is made and verified."""
        rows = self._plain + drafted
        step = self.cost.seconds(self._plain)
        verifying = self.cost.seconds(rows + going) - self.cost.seconds(rows)
        return (drafter.seconds(going, step) + verifying) / going * self._plain / step

    # --- after the step ----------------------------------------------------------------------------

    def learn(self, batch: list[ScheduledChunk]) -> None:
        """Take in what became of the guesses, when the step's cost was learnt."""
        if self._plain:
            self._account(batch)
        for chunk in batch:
            if chunk.seq.done:
                self.forget(chunk.seq)

    def _account(self, batch: list[ScheduledChunk]) -> None:
        rows = sum(chunk.num_tokens for chunk in batch)
        lone = self.cost.seconds(self._plain)
        made = [chunk.seq.tokens[chunk.first + 1 :] for chunk in batch]
        drafting = self._drafter.spent if self.draft_s and self._drafter else 0.0
        won = sum(map(len, made)) / self._plain - (self.cost.seconds(rows) + drafting) / lone
        for chunk, tokens in zip(batch, made, strict=True):
            hope = self._hopes[chunk.seq]
            if hope.guess is not None:
                hope.guess.learn(tokens)
            if rows > self._plain or drafting:
                hope.credit += won
            hope.credit = min(hope.credit + TRICKLE, MOST_CREDIT)
            chunk.seq.drafted += len(chunk.draft)
            chunk.seq.accepted += max(len(tokens) - 1, 0)
