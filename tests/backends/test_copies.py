"""The repository that is named is the one that runs; --quant chooses among published copies of a model."""

from __future__ import annotations

import pytest

from freehold import catalog
from freehold.backends.contract import DeployPlan
from freehold.backends.planning import printed
from freehold.backends.planning.options import DeployOptions, planned
from freehold.catalog import copies, quants
from freehold.config import Settings, load_settings
from freehold.errors import ModelNotFound, UsageError


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load_settings({"FREEHOLD_HOME": str(tmp_path)})


def value(plan: DeployPlan, name: str) -> str | None:
    return next((f.value for f in plan.flags if f.name == name), "absent")


@pytest.mark.parametrize(
    "repository, quant, engine",
    [
        ("Qwen/Qwen3-32B-FP8", "FP8", "vllm"),
        ("Qwen/Qwen3-32B-AWQ", "INT4", "vllm"),
        ("RedHatAI/Qwen3-32B-FP8-dynamic", "FP8", "vllm"),
        ("nvidia/Qwen3-32B-NVFP4", "NVFP4", "sglang"),
        ("hf://Qwen/Qwen3-32B-FP8", "FP8", "sglang"),
        ("unsloth/Qwen3-32B", "BF16", "vllm"),
        ("Qwen/Qwen3-32B-GGUF:Q8_0", "Q8_0", "llamacpp"),
        ("Qwen/Qwen3-32B-GGUF", "Q4_K_M", "llamacpp"),
    ],
)
def test_the_repository_that_is_named_is_the_one_that_runs(settings, repository, quant, engine):
    plan = planned(settings, DeployOptions(repository, on="2xh100", engine=engine, replicas=1))
    name = repository.removeprefix("hf://").partition(":")[0]
    assert plan.model.base == "Qwen/Qwen3-32B" and plan.model.anatomy.quant == quant
    flag = {"vllm": "--model", "sglang": "--model-path", "llamacpp": "--hf-repo"}[engine]
    assert (value(plan, flag) or "").partition(":")[0] == name
    assert f"{name}" in printed.text(plan) and f", {quant}, " in printed.text(plan)
    # what a device holds by its size: a copy takes what its type takes
    assert plan.model.anatomy.weight_bytes == pytest.approx(32.76e9 * quants.mix(quant).bits / 8, rel=0.2)


def test_a_gguf_is_not_given_to_an_engine_that_loads_safetensors(settings):
    with pytest.raises(UsageError, match="is a GGUF") as refused:
        planned(settings, DeployOptions("Qwen/Qwen3-32B-GGUF", on="2xh100", engine="vllm"))
    assert "--engine llamacpp" in refused.value.hint


def test_a_copy_whose_type_is_not_known_is_refused_and_not_taken_for_its_base(settings):
    for name in ("RedHatAI/Qwen3-32B-quantized.w8a8", "unsloth/Qwen3-32B-unsloth-bnb-4bit"):
        with pytest.raises(UsageError, match="does not say in which type"):
            planned(settings, DeployOptions(name, on="2xh100", engine="vllm"))
    with pytest.raises(ModelNotFound):
        planned(settings, DeployOptions("someone/Qwen3-32B-AWQ-uncensored", on="2xh100", engine="vllm"))


def test_quant_chooses_a_published_copy_the_labs_own_first(settings):
    plan = planned(settings, DeployOptions("qwen3:32b", on="h100", engine="vllm", quant="FP8"))
    assert value(plan, "--model") == "Qwen/Qwen3-32B-FP8" and plan.model.anatomy.quant == "FP8"
    awq = planned(settings, DeployOptions("qwen3:32b", on="rtx-4090", engine="vllm", quant="AWQ"))
    assert value(awq, "--model") == "Qwen/Qwen3-32B-AWQ"
    same = planned(settings, DeployOptions("qwen3:32b", on="2xh100", engine="vllm", quant="BF16"))
    assert value(same, "--model") == "Qwen/Qwen3-32B"


def test_quant_without_a_published_copy_names_those_that_there_are(settings):
    with pytest.raises(UsageError, match="no copy of Qwen/Qwen3-32B in MXFP4") as refused:
        planned(settings, DeployOptions("qwen3:32b", on="h100", quant="MXFP4"))
    assert "Qwen/Qwen3-32B-FP8 (FP8)" in refused.value.hint
    with pytest.raises(UsageError, match="is in FP8"):
        planned(settings, DeployOptions("Qwen/Qwen3-32B-FP8", on="h100", quant="INT4"))


def test_a_misfit_names_the_smaller_copy_that_would_fit(settings):
    with pytest.raises(UsageError, match="does not fit") as refused:
        planned(settings, DeployOptions("qwen3:32b", on="l40s", engine="trtllm"))
    assert "Qwen/Qwen3-32B-FP8 (FP8, 3" in refused.value.hint and "--quant FP8" in refused.value.hint


def test_every_listed_copy_leads_to_its_base_in_a_type_that_is_known():
    for model in catalog.models():
        for copy in copies.copies(model):
            assert catalog.model(copy.repository).id == model.id, copy
            assert copy.quant == copies.GGUF or quants.mix(copy.quant).name == copy.quant
