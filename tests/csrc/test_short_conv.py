"""The short convolution of every table against the oracle; where a prompt is cut changes no bit, nor does the batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, ULP, normal, same_bits

kernels = native.testing
every_isa = pytest.mark.parametrize("isa", native.isas())


@every_isa
@pytest.mark.parametrize(("tokens", "channels", "taps"), [(1, 64, 4), (40, 48, 3), (5, 16, 2), (9, 64, 16)])
@pytest.mark.parametrize("full", [False, True], ids=["bare", "with gates, bias and silu"])
def test_a_convolution_agrees_with_the_reference(isa, tokens, channels, taps, full):
    x, weight, state = normal(1, tokens, channels), normal(2, taps, channels), normal(3, taps - 1, channels)
    extra = (normal(4, channels), normal(5, tokens, channels), normal(6, tokens, channels))
    bias, gate_in, gate_out = extra if full else (None, None, None)
    rest = (x, weight, bias, gate_in, gate_out, state, full)
    got, after = kernels.short_conv(isa, *rest)
    want, want_after = kernels.short_conv("reference", *rest)
    assert np.abs(got - want).max() <= 16 * taps * ULP * max(1, np.abs(want).max())
    assert np.abs(after - want_after).max() <= ULP * np.abs(want_after).max()


@every_isa
@pytest.mark.parametrize("cuts", [[1, 2, 3], [2, 20], [19], [*range(1, 21)]])
def test_pieces_of_any_length_give_the_bits_of_the_whole(isa, cuts):
    """Also pieces shorter than the kept inputs, which then are moved and not replaced."""
    x, weight = normal(1, 21, 32), normal(2, 4, 32)
    whole, after = kernels.short_conv(isa, x, weight, None, None, None, None, silu=True)
    parts, state = [], None
    for first, end in pairwise([0, *cuts, 21]):
        part, state = kernels.short_conv(
            isa, x[first:end], weight, None, None, None, state, silu=True, in_place=True
        )
        parts.append(part)
    assert state is not None and same_bits(np.concatenate(parts), whole) and same_bits(state, after)


# --- the op -----------------------------------------------------------------------------------------------

CHANNELS, TAPS = 160, 3


def identity(width: int) -> native.Matrix:
    return native.Matrix.pack(
        np.eye(width, dtype=np.float32).view(np.uint8).reshape(-1), "F32", width, width, native.Threads(1)
    )


def table() -> F32:
    return normal(7, 32, CHANNELS)


class Convolved:
    """A plan of one convolution over rows of a table, and its cache of four slots."""

    def __init__(self, threads: int = 1, rows: int = 64) -> None:
        pool = native.Threads(threads)
        packed = native.Matrix.pack(table().view(np.uint8).reshape(-1), "F32", 32, CHANNELS, pool)
        self.cache = native.KvCache([(0, 0, 0)], 8, states=[((TAPS - 1) * CHANNELS, 0)], slots=4)
        self.plan = native.Plan(pool, self.cache, rows)
        x = self.plan.embed(packed)
        y = self.plan.short_conv(0, x, normal(8, CHANNELS * TAPS), normal(9, CHANNELS), "silu", gate_in=x)
        ones = np.ones(CHANNELS, np.float32)
        self.plan.logits(y, packed, ones, 1e-5)
        self.plan.finish()

    def run(self, tokens: list[list[int]], firsts: list[int], pieces: list[tuple[int, ...]]) -> F32:
        """Run a step of one or more sequences; return what the head would read of each row."""
        count = sum(map(len, tokens))
        seqs = np.repeat(np.arange(len(tokens), dtype=np.int32), [len(t) for t in tokens])
        positions = [at + i for at, t in zip(firsts, tokens, strict=True) for i in range(len(t))]
        rows, out = np.arange(count, dtype=np.int32), np.zeros((count, CHANNELS), np.float32)
        self.plan.run(
            np.concatenate(tokens).astype(np.int32), np.array(positions, np.int32), seqs,
            np.zeros((len(tokens), 2), np.int32), rows[:0], hidden_rows=rows, hidden=out,
            pieces=np.array(pieces, np.int32).reshape(-1, 5),
        )  # fmt: skip
        return out


PROMPT = [int(t) for t in np.random.default_rng(3).integers(0, 32, 40)]


def test_the_batch_and_the_threads_change_no_bit():
    alone = [Convolved().run([part], [0], [(0, 0, len(part), -1, 0)]) for part in (PROMPT, PROMPT[5:17])]
    for threads in (1, 2):
        both = Convolved(threads).run([PROMPT, PROMPT[5:17]], [0, 0], [(0, 0, 40, -1, 2), (1, 0, 12, -1, 0)])
        assert same_bits(both, np.concatenate(alone))


@pytest.mark.parametrize("cut", [1, 2, 3, 33])
def test_a_step_may_be_cut_anywhere_and_continued_from_any_slot(cut: int):
    whole = Convolved().run([PROMPT], [0], [(0, 0, 40, -1, 0)])
    it = Convolved(2)
    first = it.run([PROMPT[:cut]], [0], [(0, 0, cut, -1, 3)])
    rest = it.run([PROMPT[cut:]], [cut], [(0, cut, cut + 1, 3, 1), (0, cut + 1, 40, 1, 2)])
    assert same_bits(np.concatenate([first, rest]), whole)
    again = it.run([PROMPT[cut:]], [cut], [(0, cut, 40, 3, 3)])  # slot 3 was read and not written
    assert same_bits(again, rest)


def test_a_state_in_a_slot_is_the_last_inputs():
    it = Convolved()
    it.run([PROMPT], [0], [(0, 0, 40, -1, 1)])
    inputs = table()[PROMPT[-2:]]
    assert same_bits(it.cache.read_state(1).view(np.float32)[: 2 * CHANNELS], (inputs * inputs).reshape(-1))


def test_a_convolution_that_does_not_fit_is_refused():
    pool = native.Threads(1)
    cache = native.KvCache([(0, 0, 0)], 8, states=[(96, 0)], slots=1)
    plan = native.Plan(pool, cache, 4)
    x = plan.embed(identity(32))
    for taps, bias, act, at, named in (
        (4, None, "none", 16, "keeps 96 inputs; the convolution needs 96 from 16 on"),
        (5, None, "none", 0, "needs 128 from 0 on"),
        (1, None, "none", 0, "expected 2 to 16 each"),
        (17, None, "none", 0, "expected 2 to 16 each"),
        (4, np.zeros(31, np.float32), "none", 0, "a bias of 31 for 32 channels"),
        (4, None, "gelu", 0, "act must be 'none' or 'silu'"),
    ):
        with pytest.raises(UsageError, match=named):
            plan.short_conv(0, x, np.zeros(32 * taps, np.float32), bias, act, at=at)
    with pytest.raises(UsageError, match="no layer 1 in the cache"):
        plan.short_conv(1, x, np.zeros(96, np.float32))
    plan.short_conv(0, x, np.zeros(128, np.float32))
