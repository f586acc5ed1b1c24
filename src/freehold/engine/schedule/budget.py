"""How many seconds a step may take, and how many rows of prompts that is.

Knows what steps cost and how long running answers may wait; knows no tenant, no block, no clock. One budget a
step: the rows of running answers come first, rows of prompts fill what is left of it. While somebody reads an
answer along, a step may take a small multiple of what those rows take alone, so that a prompt of any length
delays each token by no more; while nobody does, a step is as long as whoever cancels or comes may wait.
Path: Scheduler.schedule -> Budget.open, Budget.rows, Budget.spend; Scheduler.learn -> Budget.learn
"""

from __future__ import annotations

from freehold.engine.schedule.cost import TILE, MixedCost, RowCost, StepCost

# What a running answer's step may take beside prompts, over what it takes alone. We promise three times at
# the worst; the rest is for what a measurement cannot know: a neighbour on the machine, a row that is dearer.
ITL_FACTOR = 2.2
# A burst is two or more who wait for a first token and can be read within BRIEF_S each; it is read in steps of BURST_S.
# A running answer ends no later for it: it makes fewer tokens while prompts are read, for a time that is as much
# shorter. But whoever reads along sees the gaps, so long prompts, and one alone, are read in small pieces.
BURST_S, BRIEF_S = 0.2, 1.0
ITL_FLOOR_S = 0.004  # below this nobody sees a difference, and a step's own overhead counts
STEP_S = 0.25  # a step without running answers: what Ctrl-C, a cancellation and a newcomer wait for
# Rows of prompts a step has at least while nobody decodes, as long as they take no more than half a second:
# weights are unpacked once a step. Measured on a 0.5b: 32 rows cost 10 % of the speed, 64 cost 6 %, 128 nothing.
FIRST_ROWS, SLOW_STEP_S = 128, 0.5
MIN_ROWS = 32  # and then whatever they take
LONGEST_S = 1.0  # a step beside running answers, however slow the model is
PROBE = 32  # steps with prompts after which one goes without, so that what answers alone take stays known
STARVED_PROBE = 8  # the same while not even half a tile of a prompt fits: either may have changed
LEAST_ROWS = 2  # rows of prompts a step has beside running answers, however little room there is
MAX_NUM_BATCHED_TOKENS = 512
# Rows a step may take of all sequences that want all logits: 64 x 262,144 x 4 bytes are 67 MB. The heap keeps the room
# of the largest such array it has seen, so an engine would grow with every step that had more of them.
LOGIT_ROWS = 64


class Budget:
    """One step's seconds, spent row by row; and what was learnt for the next ones."""

    def __init__(
        self,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        target_itl_s: float | None = None,
        guess_s: float = 0.0,
    ) -> None:
        """`guess_s`: seconds of a prompt's row, for the waits that are told before any was measured."""
        self.most_rows, self._guess_s = max_num_batched_tokens, guess_s
        self.cost = StepCost()  # of steps that only decode
        self._target = target_itl_s
        # A row of a prompt has a price alone, another where all its logits are wanted, and one beside answers.
        self._alone, self._logits = RowCost(), RowCost()
        self._mixed = MixedCost(self._alone)
        self._since = 0  # steps with prompts since one of answers alone
        self.begin()

    # --- spending ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a step of which nothing is spent yet."""
        self.left = self.most_rows
        self.logits_left = LOGIT_ROWS
        self.room = STEP_S  # seconds for prompts
        self._decodes = 0
        self._lone = self._seen = 0.0
        self._begun = False  # with prompts
        self.measuring = False  # what answers take alone, while prompts wait

    def open(self, decodes: int, newcomers: int = 0) -> None:
        """Set the room for prompts beside so many answers' newest tokens, while so many wait for their first.

        There is none in a step that is wanted to tell what those take alone: it costs no answer anything.
        """
        self.left -= decodes
        self._decodes = decodes
        if decodes:
            self._lone = self.cost.seconds(decodes)
            limit = self.limit(self._lone, newcomers)
            self.room = limit - self._lone
            starved = self._mixed.flat(-(-(decodes + TILE // 2) // TILE), self._lone) > limit
            if self._since >= (STARVED_PROBE if starved else PROBE) or not self.cost.near(decodes):
                self.measuring, self.left = True, 0

    def limit(self, lone: float, newcomers: int = 0) -> float:
        """Return the seconds of a step whose running answers alone take `lone`.

        `newcomers`: how many wait for their first token meanwhile, with little to read.
        """
        if self._target is not None:
            return max(self._target, lone)
        usual = max(min(ITL_FACTOR * lone, LONGEST_S), ITL_FLOOR_S, lone)
        return max(usual, BURST_S) if newcomers > 1 else usual

    def rows(self, first: int, left: int, logits: bool, seconds: float, least: bool) -> int:
        """Return how many of the `left` rows from position `first` on fit into `seconds`.

        With `least`, the step's first prompt gets some in any case.
        """
        spent = self.most_rows - self.left
        if logits or not self._decodes:
            fit = self._price(logits).rows(seconds, first)
        else:
            fit = self._mixed.rows(spent, self._seen, first, self._lone, self._now() + seconds)
        if least and not self._begun:
            fit = max(fit, self._least(self._price(logits), first))
        fit = min(fit, left, self.left, self.logits_left if logits else self.left)
        even = (spent + fit) // TILE * TILE - spent
        return fit if fit == left or even <= 0 or self._decodes else even

    def _least(self, price: RowCost, first: int) -> int:
        if self._decodes:
            return LEAST_ROWS
        if not price.known:
            return FIRST_ROWS
        return max(min(FIRST_ROWS, price.rows(SLOW_STEP_S, first)), MIN_ROWS)

    def spend(self, first: int, rows: int, logits: bool) -> None:
        """Take rows of a prompt out of the step's room."""
        before = self._now()
        self._begun = True
        self.left -= rows
        self.logits_left -= rows if logits else 0
        if logits or not self._decodes:
            self.room -= self._price(logits).seconds(rows, first)
        else:
            self._seen += rows * (first + rows / 2)
            self.room -= self._now() - before

    def _now(self) -> float:
        """Return the seconds that a step beside answers takes as it stands."""
        if not self._begun:
            return self._lone
        return self._mixed.seconds(self.most_rows - self.left, self._seen, self._lone)

    def add_decode(self) -> bool:
        """Let one more answer's newest token into the step if there is room for it."""
        more = self._decodes + 1
        extra = max(self.cost.seconds(more) - self._lone, 0.0)
        if self.left < 1 or extra > self.room:
            return False
        self._decodes, self._lone, self.left, self.room = (
            more,
            self._lone + extra,
            self.left - 1,
            self.room - extra,
        )
        return True

    # --- what is known -----------------------------------------------------------------------------

    def seconds(self, first: int, rows: int, logits: bool = False) -> float:
        """Return what reading so many rows of a prompt takes by itself."""
        return self._price(logits).seconds(rows, first)

    def expected(self, first: int, rows: int, logits: bool = False) -> float:
        """Return what to tell somebody who waits for so many rows: as `seconds`, and a guess where that knows none."""
        return self.seconds(first, rows, logits) if self._price(logits).known else rows * self._guess_s

    def most_decodes(self) -> int:
        """Return how many answers may run: a row each, and a step of them no longer than the target or a second.

        Where a lone one takes long already, a few share its step all the same.
        """
        longest = self._target or max(LONGEST_S, ITL_FACTOR * self.cost.seconds(1))
        low, high = 1, self.most_rows
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost.seconds(middle) <= longest else (low, middle - 1)
        return low

    def learn(self, decodes: int, chunks: list[tuple[int, int, bool]], extra: int, seconds: float) -> float:
        """Take in how long a step took; return the share of it that its decodes took.

        `chunks`: (first, rows, logits wanted) of prompts; `extra`: guessed rows.
        """
        self._since = self._since + 1 if chunks and decodes else 0
        if not chunks:
            self.cost.add(decodes + extra, seconds, guessed=extra > 0)
            return 1.0
        lone = min(self.cost.seconds(decodes), seconds) if decodes else 0.0
        rows = sum(count for _, count, _ in chunks)
        depth = sum(count * (first + count / 2) for first, count, _ in chunks) / rows
        wanted = [logits for _, _, logits in chunks]
        price = self._logits if all(wanted) else self._alone
        if not decodes and len(set(wanted)) == 1 and (rows >= TILE or not price.known):
            price.add(rows, int(depth - rows / 2), seconds)
        elif decodes and not any(wanted):
            self._mixed.add(decodes + rows, rows, depth, lone, seconds)
        return lone / seconds if seconds > 0 else 0.0

    def _price(self, logits: bool) -> RowCost:
        return self._logits if logits and self._logits.known else self._alone
