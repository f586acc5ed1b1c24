"""The trainee computes what the oracle computes, its gradients are those of its values, and rows stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freehold.adapt.training.packed import divergence
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee
from freehold.base.errors import CapacityExceeded, UnsupportedModel
from freehold.run.models.oracle.session import Oracle
from tests.adapt.training.conftest import Made

DENSE = [
    *(
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "falcon-groups",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma4-dense",
        "glm4",
    ),
    *(
        "granite",
        "hunyuan_v1_dense",
        "llama",
        "llama/hf",
        "llama3-rope",
        "ministral3",
        "mistral",
        "mistral-nemo",
    ),
    *("nemotron", "olmo", "olmo2", "olmo3-yarn", "phi3-long", "phi4-mini", "qwen2", "qwen2/hf", "qwen2-yarn"),
    *("qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2-window/hf"),
]
IDS = np.random.default_rng(0).integers(3, 200, 40).tolist()


def dense_logits(trainee: Trainee, rows: list[list[int]], adapter: bool = True) -> torch.Tensor:
    states = trainee.states(rows, adapter=adapter)
    return torch.cat([part.logits(states.rows) for part in states.head.slices()], 1)


@pytest.mark.heavy
@pytest.mark.parametrize("name", DENSE)
def test_trainee_computes_the_oracles_logits(name: str, tiny: Made):
    logits = dense_logits(Trainee.open(tiny(name), rank=2), [IDS[:20], IDS]).detach().numpy()
    expected = Oracle(tiny(name)).session(len(IDS)).step(IDS)
    assert np.abs(logits[19:] - expected[:-1]).max() <= 1e-4


@pytest.mark.heavy
def test_rows_of_a_batch_never_see_each_other(tiny: Made):
    trainee = Trainee.open(tiny("gemma3"), rank=2)
    together = trainee.log_probs([IDS[:9], IDS[4:30], IDS])
    for row, found in zip([IDS[:9], IDS[4:30], IDS], together, strict=True):
        assert torch.allclose(trainee.log_probs([row])[0], found, atol=1e-5)


def test_unwanted_tokens_are_left_out(tiny: Made):
    trainee = Trainee.open(tiny("qwen2"), rank=2)
    (whole,) = trainee.log_probs([IDS])
    wanted = [i % 3 == 0 for i in range(len(IDS) - 1)]
    (some,) = trainee.log_probs([IDS], wanted=[wanted])
    assert torch.allclose(some, whole[torch.tensor(wanted)], atol=1e-5)


def test_new_pairs_change_nothing(tiny: Made):
    trainee = Trainee.open(tiny("llama"), rank=4)
    assert torch.equal(trainee.log_probs([IDS])[0], trainee.log_probs([IDS], adapter=False)[0])
    assert not trainee.log_probs([IDS], adapter=False)[0].requires_grad


def moved(trainee: Trainee) -> Trainee:
    """Give every B values, so that gradients reach every A."""
    for i, pair in enumerate(trainee.adapted):
        drawn = np.random.default_rng(i).normal(0, 0.05, tuple(pair.b.shape)).astype(np.float32)
        with torch.no_grad():
            pair.b.copy_(torch.from_numpy(drawn))
    return trainee


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["gemma2", "llama", "phi3-long", "stablelm"])
def test_gradients_are_those_of_the_values(name: str, tiny: Made):
    """Along the gradient a value grows by its norm: one finite difference judges all parameters at once."""
    trainee = moved(Trainee.open(tiny(name), rank=3))
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=len(IDS) - 1).astype(np.float32))

    def value() -> torch.Tensor:
        return (trainee.log_probs([IDS])[0] * weights).sum()

    value().backward()
    grads = [p.grad.clone() for p in trainee.parameters() if p.grad is not None]
    assert len(grads) == 2 * len(trainee.adapted)
    norm = torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(())))

    def at(step: float) -> float:
        with torch.no_grad():
            for p, g in zip(trainee.parameters(), grads, strict=True):
                p.add_(g / norm, alpha=step)
            found = float(value().double())
            for p, g in zip(trainee.parameters(), grads, strict=True):
                p.sub_(g / norm, alpha=step)
        return found

    assert (at(3e-3) - at(-3e-3)) / 6e-3 == pytest.approx(float(norm), rel=2e-2)


@pytest.mark.parametrize("reverse", [False, True])
def test_divergence_is_that_of_whole_distributions(
    reverse: bool, tiny: Made, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("freehold.adapt.training.packed.VOCAB_SLICE", 100)
    trainee = moved(Trainee.open(tiny("gemma2"), rank=3))
    states, other = trainee.states([IDS]), trainee.states([IDS], adapter=False)
    rows = states.rows.detach().requires_grad_()
    found = divergence(rows, states.head, other.rows, other.head, reverse=reverse)
    found.sum().backward()
    slices = list(states.head.slices())
    assert len(slices) > 1
    plain = rows.detach().requires_grad_()
    own, base = (
        torch.log_softmax(torch.cat([part.logits(r) for part in slices], 1), 1) for r in (plain, other.rows)
    )
    p, q = (own, base) if reverse else (base, own)
    expected = (p.exp() * (p - q)).sum(1)
    expected.sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert plain.grad is not None and rows.grad is not None
    assert torch.allclose(rows.grad, plain.grad, atol=1e-5)


@pytest.mark.heavy
def test_half_products_stay_near(tiny: Made):
    whole, half = (Trainee.open(tiny("qwen3"), rank=2, half=h).log_probs([IDS])[0] for h in (False, True))
    assert 0 < (whole - half).abs().max() < 0.1


@pytest.mark.heavy
def test_layers_that_are_computed_again_give_the_same_bits(tiny: Made):
    found = []
    for memory in (1, 1 << 30):
        trainee = moved(Trainee.open(tiny("gemma3"), rank=3, memory=memory))
        (row,) = trainee.log_probs([IDS])
        row.sum().backward()
        found.append([row.detach(), *(p.grad for p in trainee.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + len(trainee.parameters())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixtral", "mixture-of-experts, of which 48 matrices"),
        ("mamba2", "short_conv"),
        ("qwen3_5", "gated_delta"),
    ],
)
def test_a_model_without_gradients_is_refused_by_name(name: str, why: str, tiny: Made):
    with pytest.raises(UnsupportedModel, match=why):
        Trainee.open(tiny(name))


def test_pairs_that_memory_does_not_hold_are_refused_before_they_are_drawn(
    tiny: Made, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("freehold.adapt.training.trainee.available_bytes", lambda: 3_000_000)
    assert Trainee.open(tiny("qwen2"), rank=2).rank == 2
    with pytest.raises(CapacityExceeded, match=r"pairs of rank 512 take .*; 3.0 MB are free"):
        Trainee.open(tiny("qwen2"), rank=512)


@pytest.mark.heavy
def test_steps_that_continue_are_the_same_bits(tiny: Made):
    def run(trainee: Trainee, optimizer: Optimizer, steps: range) -> list[float]:
        norms = []
        for i in steps:
            loss = -torch.cat(trainee.log_probs([IDS[i : i + 9], IDS[:20]])).mean()
            norms.append(optimizer.step(loss))
        return norms

    def new() -> tuple[Trainee, Optimizer]:
        trainee = Trainee.open(tiny("qwen2"), rank=4, seed=7)
        return trainee, Optimizer(trainee.parameters(), 1e-2, warmup=2, total=6)

    whole, once = new()
    norms = run(whole, once, range(6))
    first, early = new()
    run(first, early, range(3))
    second, late = new()
    second.restore(first.arrays())
    late.restore(early.arrays(), 3)
    assert run(second, late, range(3, 6)) == norms[3:]
    for name, values in whole.arrays().items():
        assert np.array_equal(values, second.arrays()[name])
