"""Capacity plays what deploy starts: the plan's own requests at a time and bytes of cache."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import freehold
from freehold.base import catalog
from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.choose.advisor import engines
from freehold.choose.advisor.anatomy import from_catalogue
from freehold.outgrow.capacity.engine import EngineLimits, of_plan
from freehold.outgrow.capacity.simulation import simulate
from freehold.outgrow.capacity.trace import steady
from freehold.outgrow.contract import DeployPlan, ParallelSizes

GIB = 1 << 30
# model, hardware, engine, copy: what fits one replica, of dense models, mixtures, latents, windows and states.
CASES = [
    ("qwen3:8b", "l40s", "vllm", ""),
    ("qwen3:8b", "h100", "vllm", ""),
    ("qwen3:8b", "rtx-4090", "vllm", ""),
    ("qwen3:8b", "a100", "sglang", ""),
    ("qwen3:8b", "l4", "vllm", "FP8"),
    ("qwen3:32b", "h100", "vllm", ""),
    ("qwen3:32b", "2xh100", "vllm", ""),
    ("qwen3:32b", "h100", "vllm", "FP8"),
    ("qwen3:32b", "l40s", "sglang", "FP8"),
    ("qwen3:32b", "rtx-5090", "vllm", "AWQ"),
    ("qwen3:14b", "2xl40s", "vllm", ""),
    ("meta-llama/Llama-3.3-70B-Instruct", "4xh100", "vllm", ""),
    ("meta-llama/Llama-3.3-70B-Instruct", "2xh200", "trtllm", "FP8"),
    ("meta-llama/Llama-3.1-8B-Instruct", "a100-40gb", "vllm", ""),
    ("Qwen/Qwen3-30B-A3B", "h100", "sglang", ""),
    ("openai/gpt-oss-20b", "l40s", "vllm", ""),
    ("openai/gpt-oss-120b", "h100", "vllm", ""),
    ("openai/gpt-oss-120b", "2xh200", "trtllm", ""),
    ("google/gemma-3-27b-it", "h100", "vllm", ""),
    ("deepseek-ai/DeepSeek-V3", "8xh200", "vllm", ""),
    ("deepseek-ai/DeepSeek-V3", "8xb200", "sglang", ""),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "4xh100", "vllm", ""),
]
_STREAMS = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests", "trtllm": "--max_batch_size"}
_SHARE = {
    "vllm": "--gpu-memory-utilization",
    "sglang": "--mem-fraction-static",
    "trtllm": "--free_gpu_memory_fraction",
}


def value(plan: DeployPlan, name: str) -> str:
    return next(flag.value or "" for flag in plan.flags if flag.name == name)


def flagged(plan: DeployPlan, tokens: int) -> EngineLimits:
    """The limits by the flags alone: requests at a time, and what weights leave of the share of each device."""
    sizes, device = plan.sizes, plan.nodes.rig.device
    each = sizes.data if plan.engine != "sglang" else 1
    parts = plan.model.anatomy.parts
    experts = sum(p.bytes for p in parts if p.role == "experts")
    rest = sum(p.bytes for p in parts) - experts
    weights = rest / sizes.tensor + experts / max(sizes.tensor, sizes.expert)
    room = float(value(plan, _SHARE[plan.engine])) * device.memory_bytes - 2.5 * GIB - weights
    latent = any(g.kind == "latent" for g in plan.model.anatomy.layers)
    heads = 1 if latent else min(sizes.tensor, plan.model.kv_heads)
    kept = plan.model.anatomy.cache_bytes(tokens) / heads + plan.model.anatomy.state_of(2) / sizes.tensor
    return EngineLimits(
        streams=int(value(plan, _STREAMS[plan.engine])) * each, room=int(room / kept * tokens) * sizes.data
    )


@pytest.mark.parametrize("model, on, engine, quant", CASES)
def test_capacity_is_the_simulation_of_the_plans_own_flags(tmp_path, model, on, engine, quant):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    asked = {"settings": settings, "on": on, "engine": engine, "quant": quant}
    plan = freehold.plan_deployment(model, replicas=1, **asked)
    said = freehold.deploy_capacity(model, rate=6, seconds=40, **asked)
    assert said.plan is not None and said.plan.argv() == plan.argv()
    own = flagged(plan, 1280)
    assert said.engine.limits.streams == own.streams
    assert said.engine.limits.room == pytest.approx(own.room, rel=1e-3)
    played = replace(said.engine, limits=replace(said.engine.limits, streams=own.streams, room=own.room))
    run = simulate(steady(6, 1024, 256, seconds=40), played)
    for figure in ("ttft", "tpot", "latency"):
        ours = said.runs[0].percentile(figure, 95)
        assert math.isclose(ours, run.percentile(figure, 95), rel_tol=0.01), figure


def test_requests_at_a_time_are_the_engines_own_and_not_a_share_of_the_cache(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    small, large = (
        freehold.plan_deployment("qwen3:8b", settings=settings, on=on, engine="vllm")
        for on in ("l40s", "h100")
    )
    assert (value(small, "--max-num-seqs"), value(large, "--max-num-seqs")) == ("256", "1024")
    traffic = freehold.plan_deployment("qwen3:8b", settings=settings, on="l40s", engine="vllm", streams=48)
    assert value(traffic, "--max-num-seqs") == "48"
    said = freehold.deploy_capacity(
        "qwen3:8b", settings=settings, on="l40s", engine="vllm", streams=48, rate=2, seconds=20
    )
    assert said.engine.limits.streams == 48 and said.plan is not None and said.plan.streams == 48


def test_a_layout_is_the_one_that_serves_a_load_soonest(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})

    def sizes(model: str, on: str) -> tuple[ParallelSizes, int]:
        plan = freehold.plan_deployment(model, settings=settings, on=on, engine="vllm")
        return plan.sizes, plan.replicas

    # 65 GB of weights leave one device room for eight conversations: two devices together have far more
    assert sizes("qwen3:32b", "2xh100") == (ParallelSizes(tensor=2), 1)
    assert sizes("qwen3:8b", "2xh100") == (ParallelSizes(), 2)


def test_hardware_that_is_not_here_is_predicted_by_the_terms_of_fit(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    one, two = (
        of_plan(
            freehold.plan_deployment(
                "qwen3:8b", settings=settings, on=on, engine="vllm", flags=(f"-tp={n}",), replicas=1
            ),
            prompt=1024,
            answer=256,
        )
        for on, n in (("h100", 1), ("2xh100", 2))
    )
    assert one.limits.chunk == 8192 and one.limits.streams == 1024
    assert two.time.of_batch(64) < one.time.of_batch(64) and two.limits.room > 2 * one.limits.room
    assert 0.003 < one.time.of_batch(1) < 0.02  # 16 GB of weights at 3.35 TB/s
    assert one.time.spread > 0


def test_a_step_that_the_user_sets_is_played(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    plan = freehold.plan_deployment(
        "qwen3:8b", settings=settings, on="a100", engine="vllm", flags=("--max-num-batched-tokens=4096",)
    )
    assert of_plan(plan, prompt=1024, answer=256).limits.chunk == 4096


def test_a_model_that_does_not_fit_is_refused_as_deploy_refuses_it(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    with pytest.raises(UsageError, match="does not fit vLLM on rtx-4090") as refused:
        freehold.deploy_capacity("qwen3:32b", settings=settings, on="rtx-4090", engine="vllm", rate=1)
    assert "--quant" in refused.value.hint


def test_attention_apart_reads_its_weights_in_each_group_and_its_latents_once():
    from freehold.choose.advisor import roofline

    work = from_catalogue(catalog.model("deepseek-ai/DeepSeek-V3"), "FP8")
    rig, vllm = catalog.rig("8xh200"), engines.engine("vllm")
    shared, apart = (roofline.step(work, rig, vllm, 512, 1024, apart=n) for n in (1, 8))
    assert apart.weights == pytest.approx(8 * shared.weights) and apart.cache == pytest.approx(
        shared.cache / 8
    )
    assert apart.experts == shared.experts
