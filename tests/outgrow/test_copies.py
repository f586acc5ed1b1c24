"""The repository that is named is the one that runs; --quant chooses among published copies of a model."""

from __future__ import annotations

import json
import shlex

import pytest

from freehold.base import catalog
from freehold.base.catalog import quants
from freehold.base.config import Settings, load_settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.outgrow.contract import DeployPlan, ParallelSizes
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning import printed
from freehold.outgrow.planning.facts import nodes_on
from freehold.outgrow.planning.options import planned


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
        for copy in quants.copies(model):
            assert catalog.model(copy.repository).id == model.id, copy
            assert copy.quant == quants.GGUF or quants.mix(copy.quant).name == copy.quant


# --- contexts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine, flag", [("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")]
)
def test_a_stretched_context_is_planned_with_its_rope_flags(settings, engine, flag):
    plain = planned(settings, DeployOptions("qwen3:8b", on="h100", engine=engine))
    assert plain.context == 40960 and value(plain, flag) == "absent"
    plan = planned(settings, DeployOptions("qwen3:8b", on="h100", engine=engine, context=100_000))
    said = json.loads(value(plan, flag) or "")
    assert said["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    assert said["max_position_embeddings"] == 131072 and any("YaRN" in note for note in plan.notes)
    with pytest.raises(UsageError, match="stretches that to 131,072"):
        planned(settings, DeployOptions("qwen3:8b", on="h100", engine=engine, context=200_000))


def test_what_has_no_rope_needs_no_scaling_and_what_takes_no_flag_is_refused(settings):
    name = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
    plan = planned(settings, DeployOptions(name, on="2xh100", engine="vllm", context=500_000))
    assert json.loads(value(plan, "--hf-overrides") or "") == {"max_position_embeddings": 1 << 20}
    with pytest.raises(UsageError, match="no flag that stretches"):
        planned(settings, DeployOptions("qwen3:8b", on="h100", engine="trtllm", context=100_000))
    with pytest.raises(UsageError, match=r"was made for 131,072$"):
        planned(settings, DeployOptions("openai/gpt-oss-20b", on="h100", engine="vllm", context=200_000))
    gguf = planned(
        settings, DeployOptions("Qwen/Qwen3-8B-GGUF", on="h100", engine="llamacpp", context=100_000)
    )
    assert (value(gguf, "--rope-scaling"), value(gguf, "--rope-scale")) == ("yarn", "4")
    assert value(gguf, "--yarn-orig-ctx") == "32768"


# --- what stands in for what does not fit -----------------------------------------------------------


def test_one_desktop_gpu_takes_a_gguf_where_its_memory_holds_nothing_else(settings):
    plan = planned(settings, DeployOptions("qwen3:32b", on="rtx-4090"))
    assert plan.engine == "llamacpp" and value(plan, "--hf-repo") == "ggml-org/Qwen3-32B-GGUF:Q4_K_M"
    assert plan.model.name == "qwen3:32b" and "does not fit rtx-4090" in plan.notes[0]
    assert planned(settings, DeployOptions("qwen3:8b", on="rtx-4090")).model.source == "Qwen/Qwen3-8B"
    with pytest.raises(UsageError, match="does not fit"):  # a named copy is not exchanged
        planned(settings, DeployOptions("Qwen/Qwen3-32B-FP8", on="rtx-4090"))


def test_auto_stays_with_the_usual_engine_inside_the_error_of_a_prediction(settings):
    for model, on in (("qwen3:32b", "2xh100"), ("qwen3:8b", "h100"), ("openai/gpt-oss-120b", "h200")):
        plan = planned(settings, DeployOptions(model, on=on))
        assert plan.engine == "vllm" and "beyond the prediction's error" in plan.notes[0]


def test_notes_of_a_hub_plan_are_one_and_a_plan_of_little_use_says_so_first(settings):
    plan = planned(settings, DeployOptions("qwen3:8b", on="h100", engine="vllm"))
    assert sum("hub" in note or "parsers" in note or "auto_map" in note for note in plan.notes) == 1
    little = planned(
        settings, DeployOptions("meta-llama/Llama-3.3-70B-Instruct", on="4xa100-40gb", engine="vllm")
    )
    assert little.warning.startswith("its cache holds 2 conversations of 4,096 tokens")
    assert printed.text(little).splitlines()[1] == f"warning: {little.warning}"


# --- several devices, several boxes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "engine, flags",
    [
        ("vllm", ("--data-parallel-size=8", "--enable-expert-parallel")),
        ("sglang", ("--tp-size=8", "--dp-size=8", "--enable-dp-attention")),
        ("trtllm", ("--tp_size=8", "--enable_attention_dp")),
    ],
)
def test_attention_apart_with_whole_experts_is_planned_as_it_is_asked_for(settings, engine, flags):
    plan = planned(settings, DeployOptions("deepseek-v3", on="8xh200", engine=engine, flags=flags))
    assert plan.sizes == ParallelSizes(tensor=1, data=8, expert=8) and plan.replicas == 1
    names = [flag.name for flag in plan.flags]
    assert all(names.count(name) <= 1 for name in names)


def test_latents_and_experts_are_spread_as_their_makers_advise(settings):
    words = {
        "vllm": {
            "--data-parallel-size": "8",
            "--enable-expert-parallel": None,
            "--tensor-parallel-size": "absent",
        },
        "sglang": {"--tp-size": "8", "--dp-size": "8", "--enable-dp-attention": None, "--ep-size": "8"},
    }
    for engine, wanted in words.items():
        plan = planned(settings, DeployOptions("deepseek-v3", on="8xh200", engine=engine))
        assert plan.sizes == ParallelSizes(tensor=1, data=8, expert=8)
        assert {name: value(plan, name) for name in wanted} == wanted


def test_groups_that_cannot_share_the_devices_out_are_refused(settings):
    flags = ("--tp-size=8", "--dp-size=3", "--enable-dp-attention")
    with pytest.raises(UsageError, match="3 groups cannot share 8 devices"):
        planned(settings, DeployOptions("deepseek-v3", on="8xh200", engine="sglang", flags=flags))


def test_more_gpus_than_a_box_has_are_several_boxes():
    two = nodes_on("16xh100")
    assert (two.count, two.rig.name) == (2, "8xh100") and two == nodes_on("2x8xh100")
    assert (nodes_on("8xh100").count, nodes_on("72xgb200").count) == (1, 1)
    assert (nodes_on("16xh100", 1).count, nodes_on("16xh100", 1).rig.count) == (1, 16)  # as it is said
    with pytest.raises(UsageError, match="fill none evenly") as refused:
        nodes_on("12xh100")
    assert "--on 16xh100" in refused.value.hint


def test_a_plan_of_sixteen_gpus_meets_across_two_boxes(settings):
    plan = planned(settings, DeployOptions("deepseek-v3", on="16xh100", engine="vllm"))
    assert plan.across == 2 and plan.sizes.tensor <= 8 and value(plan, "--nnodes") == "2"


# --- choices that a plan states ---------------------------------------------------------------------


def test_a_published_draft_and_a_template_for_tools_are_named(settings):
    eagle = planned(settings, DeployOptions("qwen3:32b", on="2xh100", engine="vllm"))
    (note,) = [n for n in eagle.notes if "EAGLE-3" in n]
    assert "RedHatAI/Qwen3-32B-speculator.eagle3" in note
    flag = shlex.split(
        note.rpartition(": ")[2] if note.endswith(")") else note[note.index("--engine-flag=") :]
    )[0]
    again = planned(
        settings,
        DeployOptions("qwen3:32b", on="2xh100", engine="vllm", flags=(flag.removeprefix("--engine-flag="),)),
    )  # the flag is taken as it is written, and the note is gone
    assert not [n for n in again.notes if "EAGLE-3" in n]
    own = planned(settings, DeployOptions("deepseek-v3", on="8xh200", engine="vllm"))
    assert any("(MTP)" in n and '"method": "mtp"' in n for n in own.notes)
    assert any("tool_chat_template_deepseekv3.jinja" in n for n in own.notes)
    with_one = DeployOptions("deepseek-v3", on="8xh200", engine="sglang", flags=("--chat-template=/t.jinja",))
    assert not any("tool_chat_template" in n for n in planned(settings, with_one).notes)


def test_the_type_of_the_cache_is_stated_and_fp8_holds_twice_as_many(settings):
    wide, narrow = (
        planned(settings, DeployOptions("qwen3:32b", on="2xh100", engine="vllm", cache_type=kind))
        for kind in ("", "fp8")
    )
    assert "tokens in 16 bits" in printed.text(wide) and "tokens in fp8" in printed.text(narrow)
    assert narrow.cache_tokens == pytest.approx(2 * wide.cache_tokens, rel=0.01)
    assert value(narrow, "--kv-cache-dtype") == "fp8" and value(wide, "--kv-cache-dtype") == "absent"
