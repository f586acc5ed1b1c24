"""Speeds on named hardware: compared with published rows, and what a rig holds of which engine."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from benches.choose import published
from freehold.base import catalog
from freehold.base.catalog.hardware import devices, rig
from freehold.base.errors import UsageError
from freehold.choose.advisor import roofline
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue
from freehold.choose.advisor.engines import engine, engines, speed, speeds, spreads
from freehold.choose.advisor.interval import Interval

LLAMA, R1, BIG = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "deepseek-ai/DeepSeek-R1",
    "meta-llama/Llama-3.1-70B-Instruct",
)


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, str], published.Figures]:
    return published.measure() | {("unseen", "answer"): published.unseen()[""]}


def weigh(model: str, quant: str) -> Anatomy:
    return from_catalogue(catalog.model(model), quant)


@pytest.mark.heavy
def test_rows_that_no_constant_has_seen_are_predicted_as_well_as_is_claimed(
    figures: dict[tuple[str, str], published.Figures],
):
    assert published.missed(figures) == []
    assert figures["one", "answer"].rows >= 450 and figures["many", "output"].rows >= 2000


@pytest.mark.heavy
def test_the_constants_are_those_that_the_rows_give(figures: dict[tuple[str, str], published.Figures]):
    kept, made = (
        tomllib.loads(t)
        for t in (published.SPEEDS.read_text(encoding="utf-8"), published.speeds_toml(figures))
    )
    again = "python benches/choose/published.py --refit"  # when rows, models or devices have changed
    pairs = [(kept["spread"]["many"], made["spread"]["many"])]
    for old, new in zip(kept["speed"], made["speed"], strict=True):
        assert {**old, "factors": 0, "spread": 0} == {**new, "factors": 0, "spread": 0}, again
        pairs += [(old["spread"], new["spread"])] if new["fit"] == "one" else []
        assert old["factors"]["weights"] == pytest.approx(new["factors"]["weights"], rel=0.05), again
    for old, new in pairs:
        assert old.keys() == new.keys(), again
        assert all(old[what] == pytest.approx(new[what], rel=0.03) for what in new), again


def test_gpu_rows_of_sources_that_no_fit_has_seen_are_predicted_as_is_claimed():
    rows, found = published.table("unseen"), published.unseen()
    sources = {r["source"] for r in rows}
    assert len(rows) >= 30 and len(sources) >= 5 and found.keys() == sources | {""}
    assert all(rig(r["rig"]).device.kind == "gpu" and r["date"] for r in rows)
    assert found[""].error <= 0.15 and 0.75 <= found[""].coverage <= 0.88
    fitted = {r["source"] for r in published.table("figures") if rig(r["rig"]).device.kind == "gpu"}
    assert not sources & fitted


def test_with_a_source_on_a_device_all_rows_of_both_are_left_out():
    rows = published.Rows("one", published.singles())
    group = next(r.group for r in rows.rows if r.tags == {"khmel", "rtx-4090"})
    kept = rows.without(group).rows
    assert kept and not any(r.tags & {"khmel", "rtx-4090"} for r in kept)


def test_a_group_counts_by_the_root_of_its_rows_in_one_users_intervals():
    ratios = {"a": np.full(4, 2.0), "b": np.full(1, 1.0)}
    assert published.shares(ratios, rooted=True) == pytest.approx([1 / 6] * 4 + [1 / 3])
    assert published.shares(ratios, rooted=False) == pytest.approx([0.2] * 5)


def test_figures_that_went_into_no_fit_are_predicted_too():
    found = published.cited()
    assert found.rows >= 16 and found.error <= 0.2 and found.coverage >= 0.6


def test_what_the_package_says_is_what_was_fitted():
    raw = next(r for r in published.table("single") if r["rig"] == "rtx-5070" and r["quant"] == "Q4_K_M")
    tokens = int(raw["isl"]) + int(raw["osl"]) // 2
    said = roofline.single_stream(
        weigh(raw["model"], raw["quant"]), rig("rtx-5070"), engine("llama.cpp"), tokens
    )
    rows = published.Rows("one", published.singles())
    row = next(r for r in rows.rows if "rtx-5070" in r.tags)
    ratio = published.Rows("one", [row]).ratios(rows.fit())["answer"][0]
    assert ratio * said.answer.mid == pytest.approx(1 / row.seconds, rel=0.02)


@pytest.mark.heavy
def test_a_claim_that_does_not_hold_is_said(figures: dict[tuple[str, str], published.Figures]):
    worse = {key: replace(f, error=0.5, coverage=0.6) for key, f in figures.items()}
    assert len(published.missed(worse)) == 6


def test_published_files_are_small_and_say_where_they_are_from():
    files = list(published.DATA.glob("*.csv"))
    assert sum(f.stat().st_size for f in files) < 300_000
    for file in files:
        head = file.read_text(encoding="utf-8").split("\n", 5)
        assert all(line.startswith("# ") for line in head[:3]) and "read 2026-" in " ".join(head[:3]), file


@pytest.mark.parametrize(
    "model, quant, on, name, tok_s, row",
    [  # one row each of what is published
        (LLAMA, "Q4_K_M", "rx-7900-xt", "llama.cpp", 114.33, "llmfit"),
        (LLAMA, "Q4_0", "m4-pro", "mlx", 50.18, "llmfit"),
        (LLAMA, "Q4_K_M", "dgx-spark", "llama.cpp", 41.2, "llmfit, a fine-tune of the same shape"),
    ],
)
def test_one_users_answers_are_within_the_interval(
    model: str, quant: str, on: str, name: str, tok_s: float, row: str
):
    found = roofline.single_stream(weigh(model, quant), rig(on), engine(name), context=256)
    assert tok_s in found.answer, row
    assert found.answer.level == 0.8


def test_many_users_get_more_together_and_less_each():
    one, two = weigh(BIG, "FP8"), rig("2xh100")
    found = [roofline.serving(one, two, engine("vllm"), 1024, 1024, users) for users in (1, 8, 32)]
    assert found[0].output.mid < found[1].output.mid < found[2].output.mid
    assert found[0].tpot.mid < found[1].tpot.mid < found[2].tpot.mid
    assert found[2].total.mid == pytest.approx(2 * found[2].output.mid)


def test_users_beyond_what_the_cache_holds_wait_in_the_queue():
    one, on = weigh(BIG, "FP8"), rig("2xh100")
    holds = roofline.place(one, on, engine("vllm"), 16_384).streams
    few, lots = (roofline.serving(one, on, engine("vllm"), 15_360, 1024, holds * n) for n in (1, 4))
    assert lots.streams == few.streams == holds
    assert lots.output == few.output and lots.ttft.mid > 3 * few.ttft.mid


def test_a_batch_reads_more_experts_but_never_all_twice():
    read = [roofline.step(weigh(R1, "FP8"), rig("8xh200"), engine("sglang"), n, 1000) for n in (1, 16, 4096)]
    assert read[0].experts < 16 * read[0].experts > read[1].experts > 5 * read[0].experts
    assert read[2].experts == pytest.approx(653.5e9 / (8 * 4.8e12), rel=0.01)
    assert [t.weights for t in read] == pytest.approx([read[0].weights] * 3, rel=0.05)


def test_more_context_is_slower_and_more_devices_faster():
    one, how = weigh(BIG, "FP8"), engine("vllm")
    at = [roofline.single_stream(one, rig("4xh100"), how, n).answer.mid for n in (100, 30_000, 100_000)]
    assert at == sorted(at, reverse=True)
    by = [roofline.single_stream(one, rig(f"{n}xh100"), how, 100).answer.mid for n in (1, 2, 4, 8)]
    assert by == sorted(by)
    alike = [
        roofline.single_stream(one, rig(f"{n}xh100"), engine("llama.cpp"), 100).answer.mid for n in (1, 4)
    ]
    assert alike[0] == alike[1], "layers one after another are no faster"


@pytest.mark.parametrize(
    "model, quant, on, name, why",
    [
        (BIG, "FP8", "2xh100", "vllm", ""),
        (BIG, "BF16", "h100", "vllm", "it needs 133.9 GiB with one conversation; h100 has"),
        (BIG, "FP8", "3xh100", "vllm", "8 heads do not divide among 3 devices"),
        (BIG, "Q4_K_M", "h100", "vllm", "does not read Q4_K_M"),
        (BIG, "Q4_K_M", "m4-max", "vllm", "does not run on Apple M4 Max"),
        (BIG, "Q4_K_M", "m4-max", "llama.cpp", ""),
        (BIG, "Q4_K_M", "m4-max:36gb", "llama.cpp", "it needs"),
        (R1, "FP8", "8xh200", "sglang", ""),
        (R1, "FP8", "8xh100", "sglang", "it needs 643.5 GiB"),
        (R1, "NVFP4", "8xmi300x", "tensorrt-llm", "does not run on AMD"),
        (LLAMA, "FP8", "t4", "sglang", "SGLang does not read FP8 on NVIDIA T4"),
        (LLAMA, "FP8", "t4", "vllm", ""),
        (LLAMA, "MXFP4", "t4", "vllm", "does not read MXFP4 on NVIDIA T4"),
        (LLAMA, "INT4", "t4", "tensorrt-llm", "does not run on NVIDIA T4"),
        (LLAMA, "FP8", "a100", "tensorrt-llm", "does not read FP8 on NVIDIA A100"),
        (LLAMA, "NVFP4", "h100", "tensorrt-llm", "does not read NVFP4 on NVIDIA H100"),
        (LLAMA, "FP8", "mi300x", "vllm", ""),
    ],
)
def test_what_fits_and_why_not(model: str, quant: str, on: str, name: str, why: str):
    found = roofline.place(weigh(model, quant), rig(on), engine(name), 8192)
    assert found.fits == (not why) and (found.streams > 0) == found.fits
    assert re.search(why, found.why)


def test_a_latent_cache_is_kept_by_every_device_but_heads_are_split():
    for model, quant, copies in ((R1, "FP8", 8), (BIG, "FP8", 1)):
        one = weigh(model, quant)
        found = roofline.place(one, rig("8xh200"), engine("vllm"), 4096)
        assert found.sequence == one.cache_bytes(4096) * copies


def test_the_usual_engine_comes_first_unless_another_is_faster_beyond_the_error():
    found = roofline.candidates(weigh(BIG, "FP8"), rig("2xh100"), engines(), 4096)
    assert [e.name for e, _ in found] == ["vllm", "sglang", "tensorrt-llm"]
    assert found[0][1].answer.mid < max(s.answer.mid for _, s in found) < found[0][1].answer.high
    speeds = {"usual": Interval(8, 10, 12), "little": Interval(9, 11, 13), "much": Interval(15, 20, 25)}
    speeds |= {"most": Interval(20, 30, 40), "slow": Interval(1, 2, 3)}
    order = roofline.preferred(list(speeds), speeds.__getitem__)
    assert order == ["most", "much", "usual", "little", "slow"]
    macs = roofline.candidates(weigh(LLAMA, "Q4_0"), rig("m4-max"), engines(), 4096)
    assert [e.name for e, _ in macs] == ["mlx", "llama.cpp"]


def test_what_no_row_covers_is_said_with_more_doubt():
    one = weigh(LLAMA, "BF16")
    on_nvidia, on_amd = (
        roofline.single_stream(one, rig(on), engine("vllm"), 1000).answer for on in ("h100", "mi300x")
    )
    assert on_amd.high / on_amd.low == pytest.approx((on_nvidia.high / on_nvidia.low) ** 2)


def test_without_a_published_rate_prompts_are_not_predicted():
    one, on = weigh(LLAMA, "Q4_K_M"), rig("m5-max")
    assert roofline.single_stream(one, on, engine("llama.cpp"), 1000).prompt is None
    with pytest.raises(UsageError, match="no operations a second are published"):
        roofline.serving(one, on, engine("llama.cpp"), 100, 100, 4)
    with pytest.raises(UsageError, match=r"it needs .* GiB"):
        roofline.serving(weigh(BIG, "BF16"), rig("h100"), engine("vllm"), 100, 100, 4)


def test_unpacking_bounds_llama_cpp_where_memory_is_fast():
    one, how = weigh(BIG, "Q4_K_M"), engine("llama.cpp")
    slow, fast = (roofline.step(one, rig(on), how, 1, 100) for on in ("dgx-spark", "h200"))
    assert slow.unpack == 0 and fast.unpack > 0.8 * fast.weights
    assert roofline.step(one, rig("h200"), engine("vllm"), 1, 100).unpack == 0


def test_weights_without_units_for_them_are_multiplied_in_16_bits():
    one = weigh(LLAMA, "FP8")
    assert roofline.rate(one, rig("t4").device, engine("vllm")) == 65e12
    assert roofline.rate(one, rig("l4").device, engine("vllm")) == 242e12


def test_no_published_row_contradicts_what_engines_need():
    for name in ("single", "serving", "figures", "unseen"):
        for row in published.table(name):
            how, on = engine(row["engine"]), rig(row["rig"]).device
            assert how.reads(row["quant"], on) == (row["quant"] in how.quants), row


def test_old_gpus_are_llama_cpps_alone():
    small = weigh("meta-llama/Llama-3.2-1B-Instruct", "F16")
    found = roofline.candidates(small, rig("gtx-1050-ti"), engines(), 4096)
    assert [e.name for e, _ in found] == ["llama.cpp"]
    assert "does not run on" in roofline.place(small, rig("gtx-1050-ti"), engine("vllm"), 4096).why


@pytest.mark.parametrize("isl, osl, users", [(-1, 10, 1), (10, 0, 1), (10, 10, 0)])
def test_users_who_ask_for_nothing_are_refused(isl: int, osl: int, users: int):
    with pytest.raises(UsageError, match="ask for nothing"):
        roofline.serving(weigh(LLAMA, "FP8"), rig("h100"), engine("vllm"), isl, osl, users)


def test_every_engine_has_a_speed_where_it_runs_and_every_factor_is_there():
    need = {"weights", "layers", "steps", "prompts", "cache", "compute", "own", "queued", "chunks", "arrival"}
    for how in engines():
        assert how.source and set(how.kinds) == set(how.memory_share)
        for device in devices():
            if how.runs_on(device):
                assert need <= speed(how, device).factors.keys(), (how.name, device.name)
    for pace in speeds():
        assert pace.rows or pace.source
        assert set(pace.covers) <= pace.spread.keys()
        assert all(s.low < 1 < s.high for s in [*spreads().values(), *pace.spread.values()])


@pytest.mark.parametrize("model, gib", [("openai/gpt-oss-20b", 11.27), ("openai/gpt-oss-120b", 59.02)])
def test_ggufs_hold_what_is_beside_mxfp4_experts_in_eight_bits(model: str, gib: float):
    one = weigh(model, "MXFP4")
    held = {name: sum(p.bytes for p in roofline.stored(one, engine(name))) for name in ("llama.cpp", "vllm")}
    assert held["llama.cpp"] / (1 << 30) == pytest.approx(gib, rel=0.01), "ggml-org's files"
    assert held["vllm"] == pytest.approx(one.weight_bytes), "as on the hub"
    assert roofline.stored(replace(one, exact=True), engine("llama.cpp")) == one.parts, (
        "a file that was weighed"
    )
    assert roofline.place(one, rig("dgx-spark"), engine("llama.cpp"), 8192).weights == round(
        held["llama.cpp"]
    )


def test_recurrent_layers_and_norms_on_both_sides_are_counted_beside_the_layers():
    counted = {
        model: (found.layers, found.recurrent, found.normed)
        for model in ("Qwen/Qwen3.5-35B-A3B", "google/gemma-4-26B-A4B-it", LLAMA)
        for found in [roofline.step(weigh(model, "Q4_K_M"), rig("rtx-4090"), engine("llama.cpp"), 1, 100)]
    }
    assert list(counted.values()) == [(40, 30, 0), (30, 0, 30), (32, 0, 0)]
    pace = speed(engine("llama.cpp"), rig("rtx-4090").device).factors
    assert 5e-6 < pace["recurrent"] < 1e-4 and 5e-6 < pace["normed"] < 1e-4, "microseconds a layer"


def test_unknown_engines_and_pairs_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match="no engine named") as raised:
        engine("vlm")
    assert "vllm" in str(raised.value.hint)
    with pytest.raises(UsageError, match="does not run on") as raised:
        speed(engine("mlx"), rig("h100").device)
    assert "vllm" in str(raised.value.hint)


# InferenceX's sweep of DeepSeek-R1 in FP8 on 8 H200 by SGLang 0.5.7, tensor parallel, prompts and answers of 1,024
# tokens (SemiAnalysisAI/InferenceX/issues/870, 2026-03-05), and of gpt-oss-120b on 8 MI300X by vLLM 0.17.0, one user
# (SemiAnalysisAI/InferenceX/pull/1092, 2026-04-19: about 249 tokens a second). None of them is in a fit.
UNSEEN_TPOT_MS = {8: 12.8, 16: 17.2, 32: 25.6, 64: 34.6}


def test_large_mixtures_on_eight_devices_are_as_fast_as_rows_that_no_fit_has_seen():
    work = weigh(R1, "FP8")
    for users, measured in UNSEEN_TPOT_MS.items():
        told = roofline.serving(work, rig("8xh200"), engine("sglang"), 1024, 1024, users).tpot
        assert told.low * 1e3 < measured < told.high * 1e3
        assert measured / 1e3 / told.mid == pytest.approx(1.0, abs=0.15), users
    oss = weigh("openai/gpt-oss-120b", "MXFP4")
    one = roofline.single_stream(oss, rig("8xmi300x"), engine("vllm"), 2048).answer
    assert one.low < 249 < one.high


def test_what_no_row_of_an_engine_tells_has_twice_the_doubt():
    box = rig("8xh200")
    latent = weigh("deepseek-ai/DeepSeek-V3", "FP8")
    heads = weigh("openai/gpt-oss-120b", "MXFP4")

    def doubt(work: Anatomy, name: str) -> float:
        answer = roofline.single_stream(work, box, engine(name), 2048).answer
        return math.log(answer.high / answer.low)

    assert doubt(latent, "vllm") == pytest.approx(2 * doubt(heads, "vllm"))
    assert doubt(latent, "sglang") == pytest.approx(doubt(heads, "sglang"))
