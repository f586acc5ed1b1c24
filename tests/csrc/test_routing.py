"""Routers and experts of other families, against what the oracle's verbs compute from the same floats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.formats import QuantType, Tensor
from freehold.run.models.oracle.session import ChosenExperts, DenseMatrix, KvStore, NumpyOps
from tests.csrc import F32, normal, same_bits
from tests.csrc.test_experts import EPS, POOL, packed, rms

WIDTH, INNER, EXPERTS = 64, 32, 12
NORM = 1 + normal(3, WIDTH) * np.float32(0.1)
EMBED = normal(1, 64, WIDTH)


@dataclass
class Variant:
    """A router's rule and what its experts are, as the ops' options."""

    top_k: int = 3
    rule: dict[str, Any] = field(default_factory=lambda: {"renormalise": False})
    options: dict[str, Any] = field(default_factory=lambda: {"act": "silu"})
    router: F32 = field(default_factory=lambda: normal(2, EXPERTS, WIDTH) * np.float32(0.3))
    inner: int = INNER

    def weights(self) -> dict[str, F32]:
        """Give router and experts, without the gate where there is none."""
        s = np.float32(0.1)
        found = {"router": self.router, "up": normal(5, EXPERTS * self.inner, WIDTH) * s}
        found["down"] = normal(6, EXPERTS * WIDTH, self.inner) * s
        if self.options["act"] != "relu2":
            found["gate"] = normal(4, EXPERTS * self.inner, WIDTH) * s
        return found


def composed(ops: Any, x: Any, w: dict[str, Any], it: Variant, apart: bool) -> None:
    """Compose route and experts into x; `apart`: by way of a buffer of their own."""
    routes = ops.route(x, w["router"], it.top_k, norm=NORM, eps=EPS, **it.rule)
    to = None if apart else x
    y = ops.experts(x, routes, w.get("gate"), w["up"], w["down"], to, norm=NORM, eps=EPS, **it.options)
    if apart:
        ops.linear_add(y, w["one"], x)


def native_rows(it: Variant, tokens: list[int], *, apart: bool = False) -> F32:
    """Run a step of these tokens, each a sequence of its own."""
    count = len(tokens)
    plan = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), count)
    w = {name: packed(value) for name, value in it.weights().items()}
    x = plan.embed(packed(EMBED))
    composed(plan, x, w | {"one": packed(np.eye(WIDTH, dtype=np.float32))}, it, apart)
    plan.logits(x, packed(EMBED), np.ones(WIDTH, np.float32), EPS)
    plan.finish()
    numbers, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
    hidden = np.zeros((count, WIDTH), np.float32)
    plan.run(
        np.array(tokens, np.int32), np.zeros(count, np.int32), numbers, np.zeros((count, 1), np.int32), none,
        hidden_rows=numbers, hidden=hidden,
    )  # fmt: skip
    return hidden


def dense(values: F32) -> DenseMatrix:
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return DenseMatrix(Tensor("w", QuantType.F32, values.shape, raw), True)


def oracle_rows(it: Variant, tokens: list[int]) -> tuple[F32, ChosenExperts]:
    """Compute the same in NumPy; and what was chosen."""
    ops = NumpyOps(np.array(tokens), KvStore(1, False), [])
    x = EMBED[tokens].copy()
    composed(ops, x, {name: dense(value) for name, value in it.weights().items()}, it, False)
    return np.asarray(rms(x), np.float32), ops.routes[0]


CORRECTION = normal(8, EXPERTS) * np.float32(0.3)
BIASES = {
    "gate_bias": normal(9, EXPERTS * INNER),
    "up_bias": normal(10, EXPERTS * INNER) * np.float32(4),
    "down_bias": normal(11, EXPERTS * WIDTH) * np.float32(0.1),
}
RULES: dict[str, Variant] = {
    "v2": Variant(rule={"renormalise": False, "groups": 4, "kept": 2, "scale": 16.0}),
    "v3": Variant(
        rule={"renormalise": True, "scoring": "sigmoid", "correction": CORRECTION, "groups": 4, "kept": 2,
              "group_score": "top2", "epsilon": 1e-20, "scale": 2.5}
    ),
    "ernie": Variant(rule={"renormalise": True, "correction": CORRECTION, "least": 1e-12}),
    "phi": Variant(2, {"renormalise": False, "scoring": "sparsemixer", "jitter": 0.01}),
    "phi, wide": Variant(2, {"renormalise": False, "scoring": "sparsemixer", "jitter": 0.3}),
    "gpt-oss": Variant(
        4, {"renormalise": True, "bias": CORRECTION}, {"act": "clamped", "limit": 1.5, "alpha": 1.702, **BIASES}
    ),
    "kolibri": Variant(
        rule={"renormalise": False, "scoring": "sigmoid", "correction": CORRECTION, "corrects_logits": True}
    ),
    "step": Variant(
        3, {"renormalise": True, "scoring": "sigmoid", "correction": CORRECTION},
        {"act": "silu", "limit": 0.2, **{key: BIASES[key] for key in ("gate_bias", "up_bias")}},
    ),
    "llama 4": Variant(1, {"renormalise": False, "scoring": "sigmoid"}, {"act": "silu", "weigh_input": True}),
    "two weighed inputs": Variant(
        2, {"renormalise": False, "scoring": "sigmoid"}, {"act": "gelu", "weigh_input": True}
    ),
    "nemotron": Variant(5, {"renormalise": True, "scoring": "sigmoid", "correction": CORRECTION}, {"act": "relu2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 17, 200])
def test_rules_give_what_the_oracle_computes(name: str, count: int):
    tokens = np.random.default_rng(count).integers(0, 64, count).tolist()
    want, chosen = oracle_rows(RULES[name], tokens)
    assert chosen.margin.min() > 1e-5
    np.testing.assert_allclose(native_rows(RULES[name], tokens), want, atol=3e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_rows_bits_do_not_depend_on_its_batch_by_any_rule(name: str):
    it, tokens = RULES[name], list(range(40))
    together = native_rows(it, tokens)
    for i in (0, 20, 39):
        assert same_bits(native_rows(it, tokens[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", ["v3", "nemotron", "gpt-oss"])
def test_experts_may_sum_into_a_buffer_of_their_own(name: str):
    """What was there before is not added: the second step of a plan finds the first one's sums."""
    want = oracle_rows(RULES[name], [3, 4, 5])[0]
    np.testing.assert_allclose(native_rows(RULES[name], [3, 4, 5], apart=True), want, atol=3e-5)


def chosen_by(scores: list[float], top_k: int, **rule: Any) -> tuple[list[int], list[float]]:
    """Route one row whose logits are these; return ids and weights, which native rows confirm."""
    logits = np.zeros(EXPERTS, np.float32)
    logits[: len(scores)] = scores
    n = np.asarray(rms(EMBED[:1]) * NORM, np.float32)[0]
    router = np.outer(logits, n / (n @ n)).astype(np.float32)
    it = Variant(top_k, {"renormalise": False, **rule}, router=router)
    want, chosen = oracle_rows(it, [0])
    np.testing.assert_allclose(native_rows(it, [0]), want, atol=3e-5)
    order = np.argsort(chosen.ids[0])
    return chosen.ids[0][order].tolist(), chosen.weights[0][order].tolist()


def exact(by: dict[int, float]) -> F32:
    found = np.zeros(EXPERTS, np.float32)
    for expert, value in by.items():
        found[expert] = value
    return found


def test_the_best_expert_of_a_group_that_is_not_kept_is_not_chosen():
    """Groups of three: 4 is the second best of all, but the groups of 0 and of 9 to 11 have more in two."""
    scores = [5.0, 1, 1, 0, 4.5, -9, 0, 0, 0, 3, 3, 3]
    v3 = {"scoring": "sigmoid", "groups": 4, "kept": 2, "group_score": "top2"}
    assert chosen_by(scores, 3, **v3)[0] == [0, 9, 10]
    assert chosen_by(scores, 3, **v3 | {"group_score": "best"})[0] == [0, 1, 4]
    assert chosen_by(scores, 3)[0] == [0, 4, 9]


def test_of_equal_groups_the_lowest_is_kept():
    zero = Variant(
        4, {"renormalise": False, "scoring": "sigmoid", "groups": 4, "kept": 2, "group_score": "top2"}
    )
    zero.router = np.zeros((EXPERTS, WIDTH), np.float32)
    want, chosen = oracle_rows(zero, [0])
    assert sorted(chosen.ids[0].tolist()) == [0, 1, 2, 3]
    np.testing.assert_allclose(native_rows(zero, [0]), want, atol=3e-5)


def test_of_equal_corrected_scores_the_lowest_id_is_chosen():
    it = Variant(3, {"renormalise": False, "scoring": "sigmoid", "correction": exact({7: 1.0})})
    it.router = np.zeros((EXPERTS, WIDTH), np.float32)
    want, chosen = oracle_rows(it, [0])
    assert sorted(chosen.ids[0].tolist()) == [0, 1, 7]
    np.testing.assert_allclose(native_rows(it, [0]), want, atol=3e-5)


def test_a_correction_chooses_and_does_not_weigh():
    ids, weights = chosen_by([2.0, 1.0], 2, scoring="sigmoid", correction=exact({11: 5.0}))
    assert ids == [0, 11]
    np.testing.assert_allclose(weights, [1 / (1 + np.exp(-2.0)), 0.5], atol=1e-6)


def test_a_correction_may_be_negative_and_a_shut_group_stays_shut():
    """Masked with zero instead of minus infinity, experts of a shut group would win over negative scores."""
    down = np.full(EXPERTS, -3, np.float32)
    rule = {"scoring": "sigmoid", "groups": 4, "kept": 1, "group_score": "top2", "correction": down}
    assert chosen_by([3.0, 2.0, 1.0], 3, **rule)[0] == [0, 1, 2]


def test_the_sparse_mixer_weighs_a_second_choice_without_the_first():
    ids, weights = chosen_by([4.0, 3.99, 1.0], 2, scoring="sparsemixer", jitter=0.01)
    assert ids == [0, 1]
    np.testing.assert_allclose(weights, [1 / (1 + np.exp(-0.01)), 1.0], atol=1e-5)


def test_a_bias_joins_before_the_clamp():
    """A bias of 100 on up is cut to the limit; joined afterwards it would not be."""

    def biased(by: float) -> Variant:
        bias = np.full(EXPERTS * INNER, by, np.float32)
        return Variant(1, options={"act": "clamped", "limit": 1.5, "alpha": 1.702, "up_bias": bias})

    assert same_bits(native_rows(biased(100), [0]), native_rows(biased(50), [0]))
    np.testing.assert_allclose(native_rows(biased(100), [0]), oracle_rows(biased(100), [0])[0], atol=3e-5)


@pytest.mark.parametrize("rule", [{"renormalise": True}, {"renormalise": False, "scale": 2.0}])
def test_a_sparse_mixer_refuses_what_it_would_ignore(rule: dict[str, Any]):
    with pytest.raises(UsageError, match="neither renormalised nor scaled"):
        native_rows(Variant(2, {"scoring": "sparsemixer", "jitter": 0.01, **rule}), [0])


def test_damage_in_a_router_reaches_rows_that_do_not_choose_it():
    for rule in ({"scoring": "sigmoid"}, {"scoring": "softmax"}, {"scoring": "sparsemixer", "jitter": 0.01}):
        it = Variant(2, {"renormalise": False, **rule})
        it.router[3, 7] = np.nan
        assert np.isnan(native_rows(it, [1, 2, 3])).all()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"scoring": "tanh"}, "scoring must be"),
        ({"groups": 5}, "5 groups do not divide 12"),
        ({"groups": 4, "kept": 5}, "5 of 4 groups"),
        ({"groups": 6, "kept": 1}, "1 of 6 groups of 2 experts cannot hold 3"),
        ({"groups": 4, "kept": 2, "group_score": "mean"}, "group_score must be"),
        ({"correction": np.zeros(5, np.float32)}, "bias of 5 for 12 experts"),
        ({"scoring": "sparsemixer", "jitter": 0.1}, "chooses two"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        native_rows(Variant(3, {"renormalise": True, **rule}), [0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"act": "clamped"}, "needs a limit"),
        ({"act": "silu", "up_bias": np.zeros(5, np.float32)}, "a bias that does not fit"),
        ({"act": "relu2", "gate_bias": BIASES["gate_bias"]}, "a gate's bias without a gate"),
    ],
)
def test_experts_that_do_not_fit_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        native_rows(Variant(options=options), [0])
