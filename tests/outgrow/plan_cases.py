"""Random plans: a model, hardware and an engine drawn from what the catalogue has and from shapes that it lacks.

`plans(400, seed)` yields as many that fit, with the count of those that were refused; benches/outgrow/plans.py gives
vLLM's own parser the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from freehold.base import catalog
from freehold.base.catalog.hardware import devices
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.layers import LayerSpec
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployedModel, DeployPlan, EngineFacts, PlanRequest
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning.facts import nodes_on, of_catalogue
from freehold.outgrow.planning.options import planned

ENGINES = ("vllm", "sglang", "trtllm")
VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23", "trtllm": "1.3.0"}
FAMILIES = (
    "",
    "qwen3",
    "qwen2.5",
    "deepseek-v3",
    "llama-3",
    "gpt-oss",
    "gemma-4",
    "kimi-k2",
    "granite",
    "olmo-3",
)
OWN = {
    "vllm": (
        ("--max-num-seqs=32",),
        ("-tp=2",),
        ("--enable-prefix-caching", "--max-num-batched-tokens=8k"),
        ("--kv-cache-dtype=fp8",),
        ("--no-enable-prefix-caching",),
        ("-dp=2",),
        ("--seed=7", "--gpu-memory-utilization=0.8"),
        ("--compilation-config.mode=3",),
        ("--max_model_len=4096",),
        ("--speculative-config={\"method\": \"ngram\", \"num_speculative_tokens\": 3}",),
    ),
    "sglang": (
        ("--max-running-requests=32",),
        ("--tp=2",),
        ("--schedule-policy=lpm",),
        ("--kv-cache-dtype=fp8_e4m3",),
        ("--disable-radix-cache",),
        ("--chunked-prefill-size 4096",),
        ("--mem-fraction-static=0.8",),
    ),
    "trtllm": (
        ("--max_batch_size=32",),
        ("--tp_size=2",),
        ("--kv_cache_dtype=fp8",),
        ("--max_num_tokens=4096",),
        ("--enable_chunked_prefill",),
        ("--kv_cache_free_gpu_memory_fraction=0.8",),
    ),
}  # fmt: skip


# Models at the hub on hardware that holds them: dense, experts, latents, windows, states, copies of others and labs.
HUB = (
    ("qwen3:8b", "l40s"), ("qwen3:32b", "2xh100"), ("Qwen/Qwen3-32B-FP8", "h100"), ("Qwen/Qwen3-32B-AWQ", "rtx-5090"),
    ("RedHatAI/Qwen3-32B-FP8-dynamic", "2xl40s"), ("nvidia/Qwen3-32B-NVFP4", "b200"), ("qwen3:14b", "a100"),
    ("Qwen/Qwen3-30B-A3B", "h100"), ("Qwen/Qwen3-235B-A22B-FP8", "8xh100"), ("Qwen/QwQ-32B", "2xa100"),
    ("deepseek-ai/DeepSeek-V3", "8xh200"), ("deepseek-ai/DeepSeek-R1", "16xh100"), ("openai/gpt-oss-20b", "l40s"),
    ("openai/gpt-oss-120b", "h100"), ("meta-llama/Llama-3.3-70B-Instruct", "4xh100"), ("zai-org/GLM-4.6", "8xh200"),
    ("google/gemma-3-27b-it", "h100"), ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "2xl40s"),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "4xh100"), ("moonshotai/Kimi-K2-Instruct", "8xb200"),
)  # fmt: skip


def hub_plans(settings: Settings, engines: tuple[str, ...] = ("vllm", "sglang")) -> list[DeployPlan]:
    """Return the plans of `HUB` on each engine, as `freehold deploy` makes them."""
    asked = (DeployOptions(model, on=on, engine=engine) for model, on in HUB for engine in engines)
    return [planned(settings, each) for each in asked]


def plans(count: int, seed: int, engines: tuple[str, ...] = ENGINES) -> Iterator[DeployPlan | UsageError]:
    """Yield requests' plans, and the errors of those that do not fit, until there are `count` plans."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        engine = draw.choice(engines)
        try:
            plan = drivers.driver(engine).plan(request(draw, engine))
        except UsageError as error:
            yield error
        else:
            made += 1
            yield plan


def request(draw: random.Random, engine: str) -> PlanRequest:
    """Draw a request; some cannot fit."""
    model = draw.choice(_known()) if draw.random() < 0.5 else synthetic(draw)
    names = [d.name for d in devices() if d.kind == "gpu" or (d.kind == "cpu" and engine == "vllm")]
    count, boxes = draw.choice((1, 1, 2, 3, 4, 6, 8, 8)), draw.choice((1, 1, 1, 2, 4))
    nodes = nodes_on(f"{count}x{draw.choice(names)}", boxes)
    here = boxes == 1 and model.here and draw.random() < 0.5
    nodes = replace(nodes, here=here, free=draw.choice((1.0, 0.8)) if here else 1.0)
    most = model.anatomy.context or 4096
    return PlanRequest(
        model=model,
        nodes=nodes,
        engine=EngineFacts(draw.choice((VERSIONS[engine], "", VERSIONS[engine] + "+cpu"))),
        context=draw.choice((0, 0, min(most, 2048), min(most, 32768))),
        streams=draw.choice((0, 0, 1, 16, 100, 512)),
        replicas=draw.choice((0, 0, 0, 1, 2, 3)),
        cache_type=draw.choice(("", "", "", "fp8")),
        flags=draw.choice(OWN[engine]) if draw.random() < 0.4 else (),
        port=draw.choice((0, 8100)),
    )


def synthetic(draw: random.Random) -> DeployedModel:
    """Draw a model of any shape; its heads may share out badly."""
    kv = draw.choice((1, 2, 3, 4, 5, 8, 16))
    heads, head_size = kv * draw.choice((1, 2, 3, 4, 7, 8)), draw.choice((64, 96, 128, 256))
    depth, experts = draw.choice((2, 16, 28, 61, 80)), draw.choice((0, 0, 0, 8, 60, 64, 128))
    weights = draw.choice((1e8, 1e9, 8e9, 3.2e10, 7e10, 2.4e11, 6.7e11))
    quant = draw.choice(("BF16", "BF16", "FP8", "INT4", "MXFP4", "NVFP4", "Q4_K_M"))
    size = weights * {"BF16": 2.0, "FP8": 1.0}.get(quant, 0.55)
    role = "experts" if experts else "body"
    parts = (
        WeightGroup(role, quant, weights * 0.9, size * 0.9),
        WeightGroup("head", "BF16", weights * 0.1, size * 0.1),
    )
    latent = draw.random() < 0.2
    kept = (
        LayerSpec("latent", depth, latent=512, rope=64) if latent else LayerSpec("full", depth, kv, head_size)
    )
    anatomy = Anatomy(
        "drawn",
        quant,
        "drawn",
        parts,
        (kept,),
        draw.choice((2048, 32768, 131072, 1 << 20)),
        hidden=heads * head_size,
    )
    return DeployedModel(
        name="drawn",
        source="/models/drawn",
        files="safetensors",
        anatomy=anatomy,
        family=draw.choice(FAMILIES),
        heads=heads,
        kv_heads=0 if latent else kv,
        head_size=head_size,
        experts=experts,
        tools=draw.choice((True, False, None)),
        thinks=draw.choice((True, False, None)),
        template=draw.choice((True, True, False)),
        mistral=draw.random() < 0.1,
        blocks=draw.choice((0, 0, 12, 20, 32)) if quant in ("FP8", "INT4") else 0,
    )


@cache
def _known() -> tuple[DeployedModel, ...]:
    found = [m for m in catalog.models() if m.role == "generator" and m.layers and m.params_b > 0.3]
    return tuple(of_catalogue(m) for m in found)
