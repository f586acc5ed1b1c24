"""Heads in two planes: the same values and logits as in one; bounds that hold; choices as from all logits."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.formats.weight_types import QuantType, row_bytes

from . import F32, normal, same_bits
from .test_matmul import BLOCK, HALVES, POOL, raw_rows

every_isa = pytest.mark.parametrize("isa", native.isas())
HEADS = pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "Q3_K"])
PLANES = {"Q8_0H", "Q6_KH"}


def planes(name: str, raw: np.ndarray, k: int) -> tuple[native.Matrix, native.Matrix]:
    """Pack rows as one panel stream, and as a head's two planes."""
    n, raw = len(raw), np.ascontiguousarray(raw).reshape(-1)
    pack = native.Matrix.pack
    return pack(raw, name, n, k, POOL), pack(raw, name, n, k, POOL, head=True)


def shapes(name: str) -> list[tuple[int, int]]:
    return (
        [(1, 256), (17, 512), (40, 768)]
        if BLOCK[name] == 256
        else [(1, 32), (17, 96), (40, 576), (16, 896), (17, 1056)]
    )


@HEADS
def test_a_head_in_planes_keeps_every_value_and_view(name):
    for n, k in shapes(name):
        whole, head = planes(name, raw_rows(name, n, k), k)
        assert head.weight_type in PLANES
        seen = native.Matrix.view(head.panels(), head.weight_type, n, k)
        for i in range(n):
            assert same_bits(head.row(i), whole.row(i))
            assert same_bits(seen.row(i), whole.row(i))


@every_isa
@HEADS
def test_a_head_in_planes_gives_the_products_of_one_plane(isa, name):
    for n, k in shapes(name):
        whole, head = planes(name, raw_rows(name, n, k), k)
        x = normal(n, 17, k)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 17):
            got = native.testing.matmul(isa, head, x[:rows], tile=17)
            assert same_bits(got, native.testing.matmul(isa, whole, x[:rows]))


def exact_rows(seed: int, m: int, k: int) -> F32:
    """Make activations that int8 holds exactly, whatever the block: integers times a power of two."""
    rng = np.random.default_rng([seed, m, k])
    x = rng.integers(-127, 128, (m, k)).astype(np.float32)
    x[:, ::32] = 127
    x[1::2] *= 2.0**-8  # what rounding left
    return x


def both(x: F32) -> F32:
    return x[::2] + x[1::2]  # exact: eight bits below the first


def hostile(name: str, n: int, k: int, x: F32) -> np.ndarray:
    """Lay codes whose low parts all pull the way of x's first row: the bound at its tightest."""
    raw = raw_rows(name, n, k).reshape(n, -1, row_bytes(QuantType[name], BLOCK[name]))
    signs = (x[0] > 0).reshape(-1, BLOCK[name])
    if name == "Q8_0":
        low = np.where(signs, 15, 0).astype(np.uint8)
        raw[..., 2:] = raw[..., 2:] & 0xF0 | low
    else:
        raw[...] = 255  # every low part at its end
        raw[..., 192:208] = 127
        raw[..., 208:] = raw_rows(name, n, k).reshape(raw.shape)[..., 208:]
    return raw


@every_isa
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_no_product_exceeds_its_bound(isa, name):
    for n, k in shapes(name):
        x = exact_rows(n, 80, k)
        for raw in (raw_rows(name, n, k), hostile(name, n, k, x)):
            _, head = planes(name, raw, k)
            y = native.testing.matmul(isa, head, x)
            for tile in (1, 3, 8, 9, 24, 40):
                upper = native.testing.screen(isa, head, both(x), tile=tile)
                assert (upper >= y[::2] + y[1::2]).all()


@every_isa
@pytest.mark.parametrize("tile", [1, 20])
def test_what_the_screen_rounds_away_is_in_the_bound(isa, tile):
    """Codes that all pull the way of activations just short of half a step: the other half of the bound alone."""
    k = 1056
    x = np.random.default_rng(4).choice(np.float32([-0.49, 0.49]), (20, k))
    x[:, ::128] = 127
    raw = raw_rows("Q8_0", 20, k).reshape(20, -1, row_bytes(QuantType.Q8_0, 32))
    raw[..., 2:] = np.where(x.reshape(20, -1, 32) > 0, 120, 136)  # low parts at their middle
    _, head = planes("Q8_0", raw, k)
    weights = np.stack([head.row(i) for i in range(20)]).astype(np.float64)
    upper = native.testing.screen(isa, head, x, tile=tile)
    assert (upper >= x.astype(np.float64) @ weights.T).all()


@every_isa
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
@pytest.mark.parametrize("tile", [4, 20])
def test_a_bound_tells_rows_apart(isa, name, tile):
    """Bounds that were always infinite would be exact too; these stay within a fifth of the longest product."""
    _, head = planes(name, raw_rows(name, 64, 768), 768)
    x = exact_rows(1, 40, 768)
    y = native.testing.matmul(isa, head, x)
    slack = native.testing.screen(isa, head, both(x), tile=tile) - (y[::2] + y[1::2])
    longest = max(np.linalg.norm(head.row(i)) for i in range(64)) * np.linalg.norm(x[::2], axis=1).max()
    assert slack.max() < 0.2 * longest


@every_isa
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_what_may_not_be_finite_has_no_bound(isa, name):
    raw = raw_rows(name, 20, 256).reshape(20, -1, row_bytes(QuantType[name], BLOCK[name]))
    at = HALVES[name][0]
    raw[7, 0, at : at + 2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    raw[9, 0, at : at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    _, head = planes(name, raw, 256)
    x = exact_rows(0, 2, 256)
    upper = native.testing.screen(isa, head, both(x))[0]
    assert (np.isposinf(upper) == np.isin(np.arange(20), (7, 9))).all()
    x[0, 3] = np.nan
    assert np.isposinf(native.testing.screen(isa, head, both(x))).all()


# --- choices ---------------------------------------------------------------------------------------


class Head:
    """A model that is nothing but its head: the activations of token i are row i of `hidden`, normalised."""

    def __init__(self, raw: np.ndarray, name: str, hidden: F32, threads: int = 2) -> None:
        self.made_of = raw, name, hidden, threads
        self.rows, k = hidden.shape
        cache = native.KvCache([(1, 32, 32)], 1)
        self.plan = native.Plan(native.Threads(threads), cache, max(self.rows, 2))
        table = native.Matrix.pack(hidden.view(np.uint8).reshape(-1), "F32", self.rows, k, POOL)
        x = self.plan.embed(table)
        head = native.Matrix.pack(np.ascontiguousarray(raw).reshape(-1), name, len(raw), k, POOL, head=True)
        self.plan.logits(x, head, np.ones(k, np.float32), 1e-6)
        self.plan.finish()

    def run(self, logit_rows, choices=(), tokens_end=0):
        rows = np.arange(self.rows, dtype=np.int32)
        table = np.zeros((1, 1), np.int32)
        wanted = np.array(logit_rows, np.int32)
        return self.plan.run(rows, rows, np.zeros_like(rows), table, wanted, choices, tokens_end)

    def anew(self) -> Head:
        """Return the same model without its past: its first step of choices screens."""
        return Head(*self.made_of)

    def check(self, tokens_end: int, temperatures=(0.0, 0.7, 1.3)) -> None:
        """Compare the choices of all rows with those from all logits, alone and in company, screened and not."""
        logits, _ = self.run(range(self.rows))
        for seed, temperature in enumerate(temperatures):
            choices = [(i, temperature, seed, 10 + i) for i in range(self.rows)]
            want = [
                native.sample(logits[i, :tokens_end].copy(), t, 0, 1.0, 0.0, 1.0, s, p)
                for i, t, s, p in choices
            ]
            assert self.run([], choices, tokens_end)[1].tolist() == want
            assert self.anew().run([], choices, tokens_end)[1].tolist() == want
            assert [self.run([], [c], tokens_end)[1][0] for c in choices] == want
            assert [self.anew().run([], [c], tokens_end)[1][0] for c in choices] == want
            half = self.rows // 2
            some, chosen = self.run(range(half), choices[half:], tokens_end)
            assert chosen.tolist() == want[half:]
            assert same_bits(some, logits[:half])


@HEADS
@pytest.mark.parametrize("threads", [1, 2])
def test_a_choice_is_the_choice_from_all_logits(name, threads):
    k = 512 if BLOCK[name] == 256 else 96
    hidden = normal(3, 11, k)
    Head(raw_rows(name, 1000, k), name, hidden, threads).check(990)


@HEADS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_that_read_all_choose_as_those_that_screen(name, temperature):
    """Equal rows leave a screen nothing to drop: after the first step it is left out, then tried again."""
    k = 256
    raw = raw_rows(name, 300, k)
    raw[150:] = raw[:150]
    head = Head(raw, name, normal(1, 4, k))
    logits, _ = head.run(range(4))
    for position in range(70):
        choices = [(i, temperature, 7, position) for i in range(4)]
        want = [native.sample(logits[i].copy(), t, 0, 1.0, 0.0, 1.0, s, p) for i, t, s, p in choices]
        assert head.run([], choices, 300)[1].tolist() == want


@HEADS
def test_damage_is_seen_with_the_screen_and_without(name):
    k = 256
    raw = raw_rows(name, 300, k).reshape(300, -1, row_bytes(QuantType[name], BLOCK[name]))
    raw[:] = raw[5]  # ties: all are finished
    at = HALVES[name][0]
    raw[290, 0, at : at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    head = Head(raw, name, normal(1, 1, k))
    assert [head.run([], [(0, t, 0, 0)], 300)[1][0] for t in (0.0, 1.0, 0.0, 1.0)] == [-1] * 4


@HEADS
def test_ties_go_to_the_lowest_id(name):
    k = 256
    raw = raw_rows(name, 300, k)
    raw[:] = raw[5]
    head = Head(raw, name, normal(1, 4, k))
    head.check(300)
    assert head.run([], [(0, 0.0, 0, 0)], 300)[1][0] == 0


@HEADS
def test_padding_rows_never_win(name):
    k = 256
    hidden = normal(1, 4, k)
    raw = raw_rows(name, 200, k)
    best = Head(raw, name, hidden).run(range(4))[0].argmax(1)
    for end in {1, 15, 16, 17, *(int(b) for b in best if b)}:
        Head(raw, name, hidden).check(end)


@pytest.mark.parametrize("name", ["F32", "Q8_0"])
def test_rows_from_the_end_on_are_not_looked_at(name):
    """Drafts are chosen among the first ids: what stands in panels after them is not read."""
    k = 96
    raw = raw_rows(name, 200, k)
    damaged = np.array(raw).reshape(200, -1)
    damaged[112:] = 0xFF  # NaN, as float32 and as a scale
    hidden = normal(1, 4, k)
    choices = [(i, float(i % 2), 3, i) for i in range(4)]
    for end in (1, 64, 97, 112):
        want = Head(raw, name, hidden).run([], choices, end)[1]
        assert Head(damaged, name, hidden).run([], choices, end)[1].tolist() == want.tolist()
        assert (want < end).all()


@HEADS
def test_tiny_heads_choose(name):
    for n in (1, 2, 16, 17):
        Head(raw_rows(name, n, 256), name, normal(1, 3, 256)).check(n)


def test_a_head_in_one_plane_chooses_alike():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((100, 64), np.float32)
    Head(weights.view(np.uint8), "F32", normal(1, 5, 64)).check(90)


@HEADS
def test_a_logit_that_is_not_finite_is_told(name):
    k = 256
    hidden = normal(1, 3, k)
    hidden[1, 5] = np.nan
    raw = raw_rows(name, 100, k)
    choices = [(i, t, 1, 2) for i in range(3) for t in (0.0, 1.0)]
    head = Head(raw, name, np.vstack([hidden, normal(2, 3, k)]))
    chosen = head.run([], choices, 100)[1]
    assert ((chosen == -1) == [False, False, True, True, False, False]).all()
    at = HALVES[name][0]
    raw.reshape(100, -1, row_bytes(QuantType[name], BLOCK[name]))[60, 0, at : at + 2] = (0, 0x7C)
    damaged = Head(raw, name, normal(2, 6, k))
    assert (damaged.run([], choices, 100)[1] == -1).all()
    assert (damaged.run([], choices, 60)[1] >= 0).all()


def test_choices_outside_the_step_are_refused():
    head = Head(raw_rows("Q8_0", 40, 64), "Q8_0", normal(1, 2, 64))
    for choice, end in (
        ((2, 0.0, 0, 0), 40),
        ((-1, 0.0, 0, 0), 40),
        ((0, 0.0, 0, 0), 0),
        ((0, 0.0, 0, 0), 41),
    ):
        with pytest.raises(UsageError):
            head.run([], [choice], end)
    with pytest.raises(UsageError):
        head.run([0, 1], [(0, 0.0, 0, 0)], 40)
