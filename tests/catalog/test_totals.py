"""Totals against their sources' own figures, re-read on 2026-12-01, and as their makers round them."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.choose.advisor.anatomy import from_catalogue
from freehold.choose.advisor.fit import fit, place_on
from freehold.outgrow.contract import ParallelSizes
from freehold.outgrow.planning.facts import of_catalogue
from freehold.outgrow.planning.layout import sequence_bytes

NOWHERE = Path("/nowhere/catalogue.toml")
# llmfit 1.1.17 (PyPI), its copy of the hub's counts of tensors ("parameters_raw"), read out of the package anew.
COUNTED = {
    "01-ai/Yi-34B-Chat": 34_388_917_248,
    "ai21labs/AI21-Jamba-Large-1.6": 398_555_145_696,
    "allenai/Olmo-3-7B-Think": 7_298_011_136,
    "allenai/OLMo-2-1124-7B-Instruct": 7_298_617_344,
    "allenai/OLMo-2-1124-13B-Instruct": 13_716_198_400,
    "Qwen/Qwen2-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "baidu/ERNIE-4.5-21B-A3B-PT": 21_948_655_808,
    "ByteDance-Seed/Seed-OSS-36B-Instruct": 36_151_104_512,
    "CohereLabs/aya-expanse-32b": 32_296_476_672,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "google/gemma-4-31B-it": 31_273_088_876,
    "google/gemma-2-9b-it": 9_241_705_984,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "ibm-granite/granite-4.1-8b": 8_791_592_960,
    "LGAI-EXAONE/EXAONE-4.0-1.2B": 1_279_391_488,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "microsoft/phi-4": 14_659_507_200,
    "MiniMaxAI/MiniMax-M2.5": 228_703_644_928,
    "mistralai/Devstral-Small-2-24B-Instruct-2512": 24_011_361_840,
    "moonshotai/Kimi-K3": 2_779_931_837_184,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_937_344,
    "openai/gpt-oss-20b": 20_914_757_184,
    "poolside/Laguna-XS.2": 33_442_617_088,
    "tiiuae/falcon-7b-instruct": 7_217_189_760,
    "upstage/Solar-Open2-250B": 250_287_810_304,
    "XiaomiMiMo/MiMo-V2.5": 310_775_040_000,
    "zai-org/GLM-5.2": 753_329_940_480,
    # under the names of copies there: mistral-experimental/pixtral-12b and tuned copies of Ministral 3
    "mistralai/Pixtral-12B-2409": 12_682_739_712,
    "mistralai/Ministral-3-3B-Instruct-2512": 3_849_090_048,
    "mistralai/Ministral-3-8B-Instruct-2512": 8_918_026_240,
}
# billions, as the makers' cards round them
ROUNDED = {
    "Qwen/Qwen2-7B-Instruct": 7.62,
    "Qwen/Qwen3-14B": 14.77,
    "mistralai/Pixtral-12B-2409": 12.7,
    "mistralai/Ministral-3-3B-Instruct-2512": 3.85,
    "mistralai/Ministral-3-8B-Instruct-2512": 8.92,
    "microsoft/phi-4": 14.66,
    "allenai/OLMo-2-1124-7B-Instruct": 7.3,
    "allenai/OLMo-2-1124-13B-Instruct": 13.7,
}


@pytest.mark.parametrize(("model_id", "counted"), COUNTED.items(), ids=list(COUNTED))
def test_a_total_is_what_its_source_counts(model_id: str, counted: int):
    assert catalog.model(model_id, NOWHERE).parameters == counted


@pytest.mark.parametrize(("model_id", "billions"), ROUNDED.items(), ids=list(ROUNDED))
def test_a_total_is_rounded_as_its_maker_rounds_it(model_id: str, billions: float):
    assert catalog.model(model_id, NOWHERE).params_b == billions


def test_no_dense_text_model_has_a_label_for_its_total():
    models = [
        m for m in catalog.models(NOWHERE) if m.kind == "dense" and m.parameters and not m.text_parameters
    ]
    off = {m.id: m.params_b for m in models if abs(m.parameters / 1e9 / m.params_b - 1) > 0.01}
    assert not off


def test_nemotron_3_nano_keeps_49082368_bytes_of_state_in_facts_and_in_plans_of_other_engines():
    known = catalog.model("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", NOWHERE)
    assert known.state_bytes == 49_082_368
    for name in ("vllm", "sglang", "tensorrt-llm"):
        planned = fit(from_catalogue(known, "BF16"), place_on(catalog.rig("2xh100"), name), 4096)
        assert planned.memory.cache["state"] == 49_082_368
    model = of_catalogue(known)
    one, more = (sequence_bytes(model, ParallelSizes(), tokens, 2.0) for tokens in (1000, 2000))
    assert 2 * one - more == 49_082_368


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [
        ("Qwen/Qwen3-8B", 8),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("allenai/OLMoE-1B-7B-0924-Instruct", 7),
        ("microsoft/phi-4", 14.66),
    ],
)
def test_a_model_is_found_by_the_size_in_its_name(model_id: str, billions: float):
    """`--max-size 8b` means Qwen3-8B too, whose total is 8.19."""
    assert catalog.model(model_id, NOWHERE).called_b == billions
