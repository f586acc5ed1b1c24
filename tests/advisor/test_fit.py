from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import get_args

import pytest

from benches.choose import fit_layers
from benches.lib import random_gguf, shapes
from freehold import _native as native
from freehold.base import catalog
from freehold.base.catalog.model import Structure
from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.base.layers import LayerSpec
from freehold.base.types import KvType
from freehold.choose.advisor import fit
from freehold.choose.advisor import fit as fits
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup, from_catalogue, in_quant
from freehold.choose.advisor.calibration import History
from freehold.choose.advisor.file_anatomy import from_file
from freehold.choose.advisor.fit import Fit, Misfit, Place, observed, place_here, place_on
from freehold.choose.advisor.machine import Machine, Rates
from freehold.run.engine.cache.capacity import ROOMS, WINDOW_SHARE, CacheBytes
from freehold.run.engine.cache.window import quota
from freehold.run.engine.schedule.budget import MAX_NUM_BATCHED_TOKENS
from freehold.run.models.binding.bind import refusal

GB = 10**9
LAYERS = Path(__file__).parents[2] / "benches" / "results" / "amd-epyc-2cpu-layers.jsonl"
RATES = Rates(read_gb_s=40.0, int8_gops=1000.0)
# 24 layers of 896 inputs, 14 heads of 64, 2 of keys, an MLP of 4864; an embedding apart from its head
BODY, TABLE = 24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864), 896 * 151936
SMALL = Anatomy(
    "small", "Q8_0", "qwen2",
    (WeightGroup("body", "Q8_0", BODY, BODY * 34 / 32), WeightGroup("head", "Q4_0", TABLE, TABLE * 18 / 32),
     WeightGroup("embed", "Q8_0", TABLE, TABLE * 34 / 32, 1 / 151936)),
    (LayerSpec("full", 24, 2, 64),), 32768, hidden=896, vocab=151936, queries=896, exact=True,
)  # fmt: skip
WINDOWED = replace(SMALL, layers=(LayerSpec("full", 4, 2, 64), LayerSpec("window", 20, 2, 64, window=512)))


def here(free: int = 20 * GB, rates: Rates = RATES, history: History | None = None) -> Place:
    machine = Machine("a processor", "avx2", 2, 2 * free, free, limited=False, rates=rates)
    return Place("this machine", fits.OURS, machine, history)


def test_memory_is_the_hand_figure():
    found = fits.fit(SMALL, here(), 4096)
    assert isinstance(found, Fit)
    assert found.memory.weights == round(BODY * 8.5 / 8 + TABLE * 4.5 / 8 + TABLE * 8.5 / 8)
    assert found.memory.cache == {"full": 24 * 2 * (64 + 64) * 2 * 4096}
    assert fit.inner(SMALL) == 4864
    assert found.memory.activations == 512 * 4 * (2 * 4864 + 3 * 896 + 2 * 896)
    assert found.memory.total == sum(
        (found.memory.weights, *found.memory.cache.values(), found.memory.activations, found.memory.overhead)
    )


def test_cache_is_what_the_engine_reserves():
    """The rule of window blocks is the engine's own: its constants, and its arithmetic over the same layers."""
    assert (fit.ROWS, fit.WINDOW_SHARE, fit.ROOMS) == (MAX_NUM_BATCHED_TOKENS, WINDOW_SHARE, ROOMS)
    assert fit.BLOCK == native.BLOCK_TOKENS
    cache = native.KvCache([(2, 64, 64)] * 24, 1, "f16", [0] * 4 + [512] * 20, 1)
    engine = CacheBytes(
        cache.bytes_per_block, cache.bytes_per_window_block, ROOMS * quota(512, MAX_NUM_BATCHED_TOKENS)
    )
    for context in (100, 1024, 4096, 32768):
        assert sum(fit.cache_bytes(WINDOWED, context).values()) == engine.total(-(-context // 32)), context
    for kv_type in get_args(KvType):
        block = native.KvCache([(2, 64, 64)] * 24, 1, kv_type).bytes_per_block
        assert fit.cache_bytes(SMALL, 64, kv_type)["full"] == pytest.approx(2 * block, rel=0.04), kv_type


def test_time_is_bytes_over_bandwidth_beside_operations_over_rate():
    read = ((BODY * 8.5 + TABLE * 4.5) / 8 + TABLE * 8.5 / 8 / 151936) / 40e9
    fast = Rates(40.0, 1e6)  # cores without a limit: bytes are all
    assert read < fit.decode_cost(SMALL, 0).seconds(fast) < 1.01 * read
    assert fit.decode_cost(SMALL, 8000).seconds(fast) - read == pytest.approx(8000 * 12288 / 40e9, rel=0.05)
    assert fit.decode_cost(SMALL, 0).seconds(RATES) > 1.2 * read
    prompt = fit.prefill_cost(SMALL, 512).seconds(RATES)
    assert prompt > 2 * BODY * 512 / 1e12
    assert fit.prefill_cost(SMALL, 4096).seconds(RATES) > 8 * prompt  # attention grows with the square
    for more in (Rates(80.0, 1000.0), Rates(40.0, 2000.0)):
        assert fit.decode_cost(SMALL, 0).seconds(more) < fit.decode_cost(SMALL, 0).seconds(RATES)


def test_constants_hold_on_another_processor():
    """The Intel guest of docs/performance.md: 37 GB/s and 1,790 GOPS gave 76.3 tok/s, 52.0 at 8k, 1,188 of a prompt."""
    intel = Rates(37.0, 1790.0)
    parts = (
        WeightGroup("body", "Q6_K", BODY, BODY * 6.5625 / 8),
        WeightGroup("head", "Q8_0", TABLE, TABLE * 34 / 32),
    )
    mixed = replace(SMALL, parts=parts)
    assert 1 / fit.decode_cost(mixed, 300).seconds(intel) == pytest.approx(76.3, rel=0.12)
    assert 1 / fit.decode_cost(mixed, 8000).seconds(intel) == pytest.approx(52.0, rel=0.25)
    assert 512 / fit.prefill_cost(mixed, 512).seconds(intel) == pytest.approx(1188, rel=0.15)


def test_context_that_does_not_fit_says_what_would():
    free = 900_000_000
    found = fits.fit(SMALL, here(free), 32768)
    assert isinstance(found, Misfit)
    assert "32,768 tokens needs" in found.reason
    assert f"--context {found.longest}" in found.hint
    assert isinstance(fits.fit(SMALL, here(free), found.longest), Fit)
    assert isinstance(fits.fit(SMALL, here(free), found.longest + 32), Misfit)
    none = fits.fit(SMALL, here(free // 2), 512)
    assert isinstance(none, Misfit)
    assert "smaller quantisation" in none.hint


def test_what_is_asked_has_limits():
    with pytest.raises(UsageError, match="card stretches that to 131,072") as beyond:
        fits.fit(from_catalogue(catalog.model("qwen3:8b"), "Q4_K_M"), here(), 100_000)
    assert "freehold deploy --context 100000" in beyond.value.hint
    with pytest.raises(UsageError, match="made for 32,768"):
        fits.fit(SMALL, here(), 40000)
    with pytest.raises(UsageError, match="0 tokens"):
        fits.fit(SMALL, here(), 0)
    refused = fits.fit(replace(SMALL, architecture="qwen3moe"), replace(here(), refuses=refusal))
    assert isinstance(refused, Misfit)
    assert "qwen3moe" in refused.reason


def test_what_runs_here_is_asked_of_the_engines_registry():
    asked = []

    def nothing(structure: Structure) -> str:
        asked.append(structure)
        return "not today"

    refused = fits.fit(SMALL, replace(here(), refuses=nothing))
    assert isinstance(refused, Misfit) and refused.reason == "not today"
    assert asked == [SMALL.structure]
    assert isinstance(fits.fit(SMALL, replace(here(), refuses=lambda _: "")), Fit)


def test_runs_here_move_the_figure_and_narrow_its_bounds():
    before = fits.fit(SMALL, here(), 4096)
    assert isinstance(before, Fit)
    slow = before.decode.mid / 2
    runs = tuple(observed(SMALL, here(), "decode", 4096, slow, "2026-11-25") for _ in range(6))
    after = fits.fit(SMALL, here(history=History(RATES, runs)), 4096)
    assert isinstance(after, Fit)
    assert after.decode.mid == pytest.approx(slow)
    assert after.decode.high / after.decode.low < before.decode.high / before.decode.low
    assert "last 6 runs of this model here" in after.basis
    assert before.basis.endswith("no run here yet")


def test_doubt_is_wide_where_nothing_was_measured():
    found = fits.fit(SMALL, here(rates=replace(RATES, measured=False)))
    assert isinstance(found, Fit)
    assert found.decode.high == pytest.approx(2 * found.decode.mid)
    assert "never measured" in found.basis


def test_a_file_in_other_quantisations_keeps_its_matrices():
    other = in_quant(SMALL, "Q4_K_M")
    assert other.weights == pytest.approx(SMALL.weights)
    assert (other.exact, other.layers) == (False, SMALL.layers)
    # 896 is not a multiple of 256, so Q4_K falls back to Q5_0 but in the MLP's second matrix
    assert {p.type for p in other.parts} == {"Q5_0", "Q4_K", "Q6_K", "Q8_0"}
    body = [p for p in other.parts if p.role == "body"]
    assert sum(p.bytes for p in body) * 8 / BODY == pytest.approx(5.5, rel=0.02)


def test_named_hardware_is_the_other_engines_roofline():
    model = catalog.model("Qwen/Qwen3-30B-A3B")
    found = fits.fit(from_catalogue(model, "BF16"), place_on(catalog.rig("2xh100"), "vllm"), 8192)
    assert isinstance(found, Fit)
    assert (found.engine, found.memory.weights) == ("vllm", 61_064_245_248)
    assert 50 < found.decode.mid < 600
    small = fits.fit(from_catalogue(model, "BF16"), place_on(catalog.rig("rtx-4090"), "vllm"))
    assert isinstance(small, Misfit)
    assert small.reason
    assert small.hint
    with pytest.raises(UsageError, match="no engine"):
        place_on(catalog.rig("h100"), "vlm")


def test_this_machine_is_a_place(tmp_path: Path):
    settings = replace(load_settings({"FREEHOLD_HOME": str(tmp_path)}), home=tmp_path)
    place = place_here(settings, refusal, measure=False)
    assert place.machine is not None
    assert not place.machine.rates.measured
    assert place.free > 0
    assert date.fromisoformat(observed(SMALL, place, "prefill", 512, 10.0, "2026-11-25").at)


def test_beyond_an_indexers_picks_a_token_reads_its_keys_alone():
    layer = LayerSpec("latent", 24, latent=512, rope=64, index=128)
    sparse = replace(SMALL, index_topk=2048, layers=(layer,), queries=14 * 576)
    verdict = fits.fit(sparse, here(), 8192)
    assert isinstance(verdict, Fit) and verdict.longest > 2048
    short, long = fit.decode_cost(sparse, 2048), fit.decode_cost(sparse, 8192)
    assert long.read - short.read == 24 * 128 * 2 * (8192 - 2048)
    dense = replace(sparse, index_topk=0)
    assert short.cores < long.cores < fit.decode_cost(dense, 8192).cores
    assert fit.prefill_cost(sparse, 32768).rest < fit.prefill_cost(dense, 32768).rest


def test_models_with_an_indexer_state_how_many_tokens_it_picks():
    """Their families bound the context by it, so the catalogue may not lack it."""
    for model in catalog.models(Path("/nowhere/catalogue.toml")):
        if model.architecture in ("deepseek32", "glm-dsa"):
            assert from_catalogue(model, "Q4_K_M").index_topk == 2048, model.id


# The same weights as experts: eight parts of them, of which a token is sent to two.
SPARSE = replace(
    SMALL,
    parts=(WeightGroup("experts", "Q8_0", 8 * BODY, 8 * BODY * 34 / 32, 1 / 4), *SMALL.parts[1:]),
)
LATENT = replace(SMALL, layers=(LayerSpec("latent", 24, latent=512, rope=64),), queries=14 * 576)
STATEFUL = replace(
    SMALL, layers=(LayerSpec("full", 6, 2, 64), LayerSpec("deltanet", 18, state=524288, conv=24576))
)


def test_a_prompt_reads_all_experts_and_a_token_its_own():
    one, prompt = fit.decode_cost(SPARSE, 0), fit.prefill_cost(SPARSE, 512)
    assert prompt.read - one.read == pytest.approx(6 * BODY * 8.5 / 8, rel=0.01)
    assert prompt.rest > fit.prefill_cost(replace(SPARSE, parts=SMALL.parts), 512).rest
    two = fit.batch_cost(SPARSE, 0, 2)
    assert one.read < two.read < prompt.read


def test_a_latent_costs_products_of_all_heads_and_few_bytes():
    latent, keys = (fit.decode_cost(a, 8000) for a in (LATENT, SMALL))
    assert latent.read - fit.decode_cost(LATENT, 0).read == 24 * 576 * 2 * 8000
    more = replace(LATENT, queries=2 * LATENT.queries)
    assert fit.decode_cost(more, 8000).cores > 1.8 * (latent.cores - 2 * LATENT.token_weights / 0.095)
    assert latent.cores > keys.cores


def test_a_state_is_read_and_written_whatever_the_depth():
    first, deep = (fit.decode_cost(STATEFUL, depth) for depth in (0, 8000))
    bare = fit.decode_cost(replace(STATEFUL, layers=STATEFUL.layers[:1]), 0)
    assert first.read - bare.read == 2 * STATEFUL.state_bytes
    assert deep.read - first.read == 6 * 256 * 2 * 8000
    assert fit.prefill_cost(STATEFUL, 512).rest > fit.prefill_cost(replace(STATEFUL, layers=()), 512).rest


# Shapes whose race has no record yet.
UNRACED = {"granite-4.0-h-tiny", "falcon-h1-1.5b", "laguna-xs.2", "falcon-mamba-7b"}


def test_constants_hold_for_experts_states_and_latents_at_published_sizes():
    timings = fit_layers.read_records(LAYERS)
    assert {t.shape for t in timings} == shapes.SHAPES.keys() - UNRACED
    errors = [abs(t.predicted / t.speed - 1) for t in timings]
    assert median(errors) < 0.06 and max(errors) < 0.27


def test_a_shape_is_weighed_as_its_file_is(tmp_path: Path):
    shape = shapes.SHAPES["qwen3.5-0.8b"]
    random_gguf.write(tmp_path / "m.gguf", shape.architecture, shape.keys)
    weighed, held = fit_layers.anatomy_of("qwen3.5-0.8b"), from_file(tmp_path / "m.gguf")
    assert weighed.layers == held.layers and weighed.queries == held.queries
    assert weighed.token_weights == pytest.approx(held.token_weights, rel=0.01)
    assert fit.packed_bytes(weighed) == pytest.approx(fit.packed_bytes(held), rel=0.01)


def test_fit_says_of_each_model_which_runs_here_were_timed():
    """`why` counts the same runs: those of this model, with those under other load apart."""
    one = observed(SMALL, here(), "decode", 4096, 20.0, "2026-11-25")
    other, loaded = replace(one, model="another"), replace(one, load=9.0)

    def basis(history: History) -> str:
        found = fits.fit(SMALL, here(history=history), 4096)
        assert isinstance(found, Fit)
        return found.basis

    assert basis(History(RATES, (one,))).endswith("; 1 run of this model here, too few to correct by")
    assert basis(History(RATES, (other,) * 3)).endswith("; none of this model in this quantisation")
    assert basis(History(RATES, (), 0, (loaded, loaded))).endswith(
        "; no other run here; 2 of this model under other load are left out"
    )
