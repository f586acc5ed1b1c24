"""Tiny random models for the engine: two layers' worth of arithmetic, no weights, no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.lora import Adapter, load_adapter
from tests.engine.hybrids import hybrid as tiny_hybrid
from tests.vectors.adapters import ATTENTION, Case, write_peft
from tests.vectors.files import write_gguf, write_safetensors


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A qwen2 of 512 positions whose matrices are Q8_0, so that integer kernels are in play."""
    path = write_gguf("qwen2", tmp_path_factory.mktemp("engine") / "qwen2.gguf", dtype="Q8_0")
    return load_model(path, threads=1, name="tiny")


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A gemma3 with windows of 8."""
    path = write_gguf("gemma3", tmp_path_factory.mktemp("engine") / "gemma3.gguf")
    return load_model(path, threads=1, name="tiny-sliding")


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A qwen2moe, whose experts and shared expert are Q8_0."""
    path = write_gguf("qwen2moe", tmp_path_factory.mktemp("engine") / "moe.gguf", dtype="Q8_0")
    return load_model(path, threads=1, name="tiny-experts")


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An lfm2: short convolutions, and attention on one layer."""
    return tiny_hybrid("lfm2", tmp_path_factory.mktemp("engine") / "lfm2")


@pytest.fixture(scope="session")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Mamba-2 alone: no layer has keys and values."""
    return tiny_hybrid("mamba2", tmp_path_factory.mktemp("engine") / "mamba2")


@pytest.fixture(scope="session")
def mamba_experts(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A nemotron_h: Mamba-2, experts between narrower projections, attention without positions."""
    return tiny_hybrid("nemotron", tmp_path_factory.mktemp("engine") / "nemotron")


@pytest.fixture(scope="session")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A falcon_h1: attention and Mamba-2 in every layer."""
    return tiny_hybrid("falcon", tmp_path_factory.mktemp("engine") / "falcon")


@pytest.fixture(scope="session")
def selective(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A jamba: Mamba-1, attention on one layer, experts on every second."""
    return tiny_hybrid("jamba", tmp_path_factory.mktemp("engine") / "jamba")


@pytest.fixture(scope="session")
def latent(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A deepseek_v3: latent attention, experts by groups."""
    return tiny_hybrid("latent", tmp_path_factory.mktemp("engine") / "latent")


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A deepseek_v32: latent attention to 40 tokens that an indexer picks."""
    return tiny_hybrid("sparse", tmp_path_factory.mktemp("engine") / "sparse")


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A gemma4: its last layers read the keys and values of earlier ones, sliding or full."""
    return tiny_hybrid("gemma4", tmp_path_factory.mktemp("engine") / "gemma4")


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A gemma3n: three residual streams, of which the last is computed, and gates that are cut."""
    path = write_safetensors("gemma3n-active", tmp_path_factory.mktemp("engine") / "gemma3n")
    return load_model(path, threads=1, name="tiny-streams")


@pytest.fixture(scope="session")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A cohere2: attention and MLP read one layer norm, and full layers know no positions."""
    return tiny_hybrid("cohere2", tmp_path_factory.mktemp("engine") / "cohere2")


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A qwen3_5 with a head that drafts: gated DeltaNet, and attention on one layer."""
    path = write_gguf("qwen3_5-head", tmp_path_factory.mktemp("engine") / "head.gguf")
    return load_model(path, threads=1, name="tiny-head")


@pytest.fixture(scope="session")
def no_adapters() -> tuple[Adapter, ...]:
    """None, for models whose answers are compared without."""
    return ()


@pytest.fixture(scope="session")
def adapters(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    """Two for `model`, of other ranks and modules."""
    return made(model, "qwen2", tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def sliding_adapters(
    sliding: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, Adapter]:
    """Two for `sliding`."""
    return made(sliding, "gemma3", tmp_path_factory.mktemp("sliding-adapters"))


@pytest.fixture(scope="session")
def experts_adapters(
    experts: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, Adapter]:
    """Two for `experts`, of attention alone."""
    folder = tmp_path_factory.mktemp("experts-adapters")
    cases = (Case("qwen2moe", seed=1, targets=ATTENTION), Case("qwen2moe", seed=2, r=33, targets=("v_proj",)))
    first, other = (load_adapter(write_peft(case, folder / str(case.seed)), experts, "x") for case in cases)
    return first, other


def made(model: LoadedModel, family: str, folder: Path) -> tuple[Adapter, Adapter]:
    first = load_adapter(write_peft(Case(family, seed=1), folder / "first"), model, "first")
    narrow = Case(family, seed=2, r=33, alpha=12, targets=ATTENTION)
    return first, load_adapter(write_peft(narrow, folder / "other", dtype="F16"), model, "other")


@pytest.fixture(scope="session")
def delta(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A qwen35moe: gated DeltaNet whose value heads share key heads, gated attention, experts."""
    return tiny_hybrid("delta", tmp_path_factory.mktemp("engine") / "delta")


@pytest.fixture(scope="session")
def kda(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A kimi_linear: a delta rule whose decay has a value for each key, latent attention, experts."""
    return tiny_hybrid("kda", tmp_path_factory.mktemp("engine") / "kda")
