"""Mamba's kernels of every table against the oracle, and that no way of cutting a prompt changes a bit."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, ULP, normal, same_bits

kernels = native.testing

every_isa = pytest.mark.parametrize("isa", native.isas())


def inputs(tokens: int, channels: int, states: int, seed: int = 0) -> tuple[F32, F32, F32, F32, F32, float]:
    x, b, c = (
        normal(seed, tokens, channels),
        normal(seed + 1, tokens, states),
        normal(seed + 2, tokens, states),
    )
    step, decay = kernels.mamba_steps(
        "reference",
        normal(seed + 3, tokens),
        np.full(tokens, -1, np.float32),
        np.full(tokens, -0.7, np.float32),
    )
    return x, b, c, step, decay, 0.8


@every_isa
def test_steps_agree_with_the_reference_where_they_are_tiny_and_where_they_are_large(isa):
    """softplus keeps its relative precision at -30, where log(1 + e^x) in float32 is 0."""
    dt = np.concatenate([np.linspace(-80, 80, 321), normal(1, 30) * 9 - 9]).astype(np.float32)
    bias, a = normal(2, len(dt)), -np.exp(normal(3, len(dt)))
    step, decay = kernels.mamba_steps(isa, dt, bias, a)
    want_step, want_decay = kernels.mamba_steps("reference", dt, bias, a)
    x = dt + bias
    assert np.all(np.abs(step - want_step) <= (8 + 2 * np.abs(np.minimum(x, 0))) * ULP * want_step + 1e-44)
    error = np.abs(decay - want_decay)
    assert np.all(error <= (16 + 8 * np.abs(want_step * a)) * ULP * want_decay + 1e-44)


@every_isa
def test_a_step_that_is_not_a_number_stays_one(isa):
    step, decay = kernels.mamba_steps(isa, *(np.array([np.nan], np.float32),) * 2, np.array([-1], np.float32))
    assert np.isnan(step).all() and np.isnan(decay).all()


@every_isa
@pytest.mark.parametrize(
    ("tokens", "channels", "states"), [(1, 64, 128), (40, 64, 128), (17, 16, 7), (33, 48, 130)]
)
def test_scan_agrees_with_the_reference(isa, tokens, channels, states):
    given, state = inputs(tokens, channels, states), normal(9, states, channels)
    y, after = kernels.mamba_scan(isa, *given, state)
    want, want_after = kernels.mamba_scan("reference", *given, state)
    reach = np.abs(want).max() + np.sqrt(states) * np.abs(want_after).max() * 3
    assert np.abs(after - want_after).max() <= 64 * ULP * np.abs(want_after).max()
    assert np.abs(y - want).max() <= 64 * ULP * reach


@every_isa
def test_a_scan_without_a_state_begins_with_zeros(isa):
    given = inputs(5, 32, 12)
    zeros = np.zeros((12, 32), np.float32)
    for one, other in zip(
        kernels.mamba_scan(isa, *given, None), kernels.mamba_scan(isa, *given, zeros), strict=True
    ):
        assert same_bits(one, other)


@every_isa
@pytest.mark.parametrize("cuts", [(1, 16, 17, 40), (15, 31, 47), tuple(range(1, 50))])
def test_pieces_of_a_prompt_give_the_bits_of_the_whole(isa, cuts):
    x, b, c, step, decay, d = inputs(50, 64, 37)
    whole, after = kernels.mamba_scan(isa, x, b, c, step, decay, d, None)
    parts: list[F32] = []
    state: F32 | None = None
    for begin, end in zip((0, *cuts), (*cuts, 50), strict=True):
        rows = slice(begin, end)
        y, state = kernels.mamba_scan(
            isa, x[rows], b[rows], c[rows], step[rows], decay[rows], d, state, in_place=True
        )
        parts.append(y)
    assert state is not None and same_bits(state, after)
    assert same_bits(np.concatenate(parts), whole)


@every_isa
def test_channels_computed_apart_give_the_bits_of_all(isa):
    """Threads share blocks of channels, and a head of 80 is one of 64 and one of 16."""
    x, b, c, step, decay, d = inputs(21, 64, 20)
    whole, after = kernels.mamba_scan(isa, x, b, c, step, decay, d, None)
    for p in range(0, 64, 16):
        own = np.ascontiguousarray(x[:, p : p + 16])
        y, state = kernels.mamba_scan(isa, own, b, c, step, decay, d, None)
        assert same_bits(y, np.ascontiguousarray(whole[:, p : p + 16]))
        assert same_bits(state, np.ascontiguousarray(after[:, p : p + 16]))


# --- Mamba-1: steps of each channel, and a decay for each state -------------------------------------


def selective(tokens: int, channels: int, states: int, seed: int = 20) -> tuple[F32, ...]:
    x, dt = normal(seed, tokens, channels), normal(seed + 1, tokens, channels) - 1
    b, c = normal(seed + 2, tokens, states), normal(seed + 3, tokens, states)
    a = -np.exp(normal(seed + 4, states, channels))
    return x, dt, b, c, a, normal(seed + 5, channels), normal(seed + 6, channels)


@every_isa
@pytest.mark.parametrize(
    ("tokens", "channels", "states"), [(1, 64, 16), (40, 64, 16), (17, 16, 7), (33, 48, 130)]
)
def test_a_selective_scan_agrees_with_the_reference(isa, tokens, channels, states):
    inputs, state = selective(tokens, channels, states), normal(9, states, channels)
    y, after = kernels.selective_scan(isa, *inputs, state)
    want, want_after = kernels.selective_scan("reference", *inputs, state)
    reach = np.abs(want).max() + np.sqrt(states) * np.abs(want_after).max() * 3
    assert np.abs(after - want_after).max() <= 64 * ULP * np.abs(want_after).max()
    assert np.abs(y - want).max() <= 64 * ULP * reach


@every_isa
@pytest.mark.parametrize("cuts", [(1, 16, 17, 40), (15, 31, 47), tuple(range(1, 50))])
def test_pieces_of_a_selective_scan_give_the_bits_of_the_whole(isa, cuts):
    x, dt, b, c, *own = selective(50, 64, 17)
    whole, after = kernels.selective_scan(isa, x, dt, b, c, *own, None)
    parts: list[F32] = []
    state: F32 | None = None
    for begin, end in zip((0, *cuts), (*cuts, 50), strict=True):
        rows = slice(begin, end)
        y, state = kernels.selective_scan(
            isa, x[rows], dt[rows], b[rows], c[rows], *own, state, in_place=True
        )
        parts.append(y)
    assert state is not None and same_bits(state, after)
    assert same_bits(np.concatenate(parts), whole)


@every_isa
def test_channels_of_a_selective_scan_computed_apart_give_the_bits_of_all(isa):
    x, dt, b, c, a, d, bias = selective(21, 64, 20)
    whole, after = kernels.selective_scan(isa, x, dt, b, c, a, d, bias, None)
    for p in range(0, 64, 16):
        own = [np.ascontiguousarray(v[..., p : p + 16]) for v in (x, dt, a, d, bias)]
        y, state = kernels.selective_scan(isa, own[0], own[1], b, c, *own[2:], None)
        assert same_bits(y, np.ascontiguousarray(whole[:, p : p + 16]))
        assert same_bits(state, np.ascontiguousarray(after[:, p : p + 16]))


def test_a_selective_scan_refuses_what_does_not_fit():
    plan = native.Plan(native.Threads(1), native.KvCache([(0, 0, 0)], 1, "f32", [0], 0, [(0, 64 * 4)], 1), 4)
    raw = np.ascontiguousarray(normal(1, 8, 64)).view(np.uint8).reshape(-1)
    x = plan.embed(native.Matrix.pack(raw, "F32", 8, 64, native.Threads(1)))
    four, one = plan.part(x, 0, 4), np.ones(64, np.float32)
    with pytest.raises(UsageError, match="a needs a value for each state and channel"):
        plan.selective_scan(0, x, x, four, four, one, one, one)
    with pytest.raises(UsageError, match="d and bias need a value for each channel"):
        plan.selective_scan(0, x, x, four, four, np.ones(256, np.float32), one[:3], one)
    with pytest.raises(UsageError, match="24 channels are no multiple of 16"):
        plan.selective_scan(0, plan.part(x, 0, 24), x, four, four, one, one, one)
