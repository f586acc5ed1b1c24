"""Plans of models that see: flags, sizes, notes, links; counts of llama.cpp beside ours; pictures before an engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Drawing

from freehold.base.catalog import model as catalogued
from freehold.base.catalog.hardware import Rig
from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Image, Message
from freehold.outgrow import drivers
from freehold.outgrow import flags as schema
from freehold.outgrow.contract import DeployedModel, DeployedTower, DeployPlan, PlanRequest
from freehold.outgrow.planning import printed
from freehold.outgrow.planning.eyes import llamacpp_counts
from freehold.outgrow.planning.facts import at_the_hub, nodes_on, of_catalogue, of_path, processor
from freehold.outgrow.replicas.calls import abilities_of
from freehold.outgrow.replicas.deployment import PictureDoor
from freehold.run.formats import open_model_file
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.tiny import make
from tests.outgrow.test_plans import wrong
from tests.pictures import makers

RECORDED = json.loads((Path(__file__).parent / "recorded" / "llamacpp_picture_tokens.json").read_text())[
    "models"
]
CPU = replace(nodes_on("h100"), rig=Rig(processor("a processor", 4, 16 << 30, 20.0)), here=True)
TEXT = "qwen2"


def in_folder(folder: Path, name: str) -> DeployedModel:
    return of_path(make.write_safetensors(make.config(name), folder / name))


def in_gguf(folder: Path, name: str) -> DeployedModel:
    folder.mkdir(exist_ok=True)
    tiny = make.config(name)
    if tiny.mmproj:
        make.write_mmproj(tiny, folder / f"mmproj-{name}.gguf")
    return of_path(make.write_gguf(tiny, folder / f"{name}.gguf"))


def values(plan: DeployPlan) -> dict[str, str | None]:
    return {flag.name: flag.value for flag in plan.flags}


def planned(engine: str, model: DeployedModel, *flags: str, **more: Any) -> DeployPlan:
    on = CPU if engine in ("llamacpp", "ollama") else nodes_on("h100")
    plan = drivers.driver(engine).plan(PlanRequest(model, on, flags=flags, **more))
    if plan.schema:
        assert wrong(plan) == []
    return plan


# --- facts ----------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_folder_that_sees_has_its_tower_among_its_sizes(tmp_path: Path):
    model, text = in_folder(tmp_path, "qwen3_vl"), in_folder(tmp_path, TEXT)
    assert model.tower == DeployedTower("", "qwen3vl", 4, 16) and model.sees
    tower = sum(part.bytes for part in model.anatomy.parts if part.role == "towers")
    with open_model_file(model.source) as opened:
        assert tower == sum(t.nbytes for name, t in opened.tensors.items() if "visual." in name) > 0
    assert model.anatomy.token_bytes < model.anatomy.weight_bytes - tower + 1
    assert text.tower is None and not text.sees


def test_a_gguf_sees_with_the_tower_beside_it_that_fits(tmp_path: Path):
    model = in_gguf(tmp_path, "gemma4-eyes")
    assert model.tower is not None and model.tower.whole and model.tower.most == 280
    assert model.tower.file == str(tmp_path / "mmproj-gemma4-eyes.gguf")
    (tmp_path / "other").mkdir()
    alone = of_path(make.write_gguf(make.config(TEXT), tmp_path / "other" / "a.gguf"))
    assert alone.tower is None
    (tmp_path / "other" / "mmproj-a.gguf").write_bytes(Path(model.tower.file).read_bytes())
    assert of_path(tmp_path / "other" / "a.gguf").tower is not None  # as wide, and no name says otherwise
    other = make.config("gemma3-eyes").mmproj | {"clip.vision.projection_dim": 96}
    (tmp_path / "other" / "mmproj-a.gguf").write_bytes(make.gguf_bytes(other, {}))
    assert of_path(tmp_path / "other" / "a.gguf").tower is None  # of another width


@pytest.mark.heavy
def test_rows_of_a_picture_are_one_batch_by_the_text_model(tmp_path: Path):
    """E2B and E4B have the tower of the larger ones, and see pictures word by word."""
    for name, whole in (("gemma4-clipped", False), ("gemma4-eyes", True)):
        for model in (in_gguf(tmp_path / name, name), in_folder(tmp_path / name, name)):
            assert model.tower is not None and model.tower.name == "gemma4" and model.tower.whole == whole


# --- plans ----------------------------------------------------------------------------------------------


def test_vllm_takes_pictures_alone_and_fetches_none(tmp_path: Path):
    plan = planned("vllm", in_folder(tmp_path, "qwen3_vl"))
    flags = values(plan)
    assert json.loads(flags["--limit-mm-per-prompt"] or "") == {"image": 100, "video": 0, "audio": 0}
    assert flags["--allowed-media-domains"] == "none.invalid"
    assert "--allowed-local-media-path" not in flags and flags["--mm-processor-cache-gb"] == "1"
    assert abilities_of(plan).images and "4 to 16 tokens per picture" in printed.text(plan)
    own = planned("vllm", in_folder(tmp_path, "qwen3_vl"), "--limit-mm-per-prompt={\"image\": 2}",
                  "--mm-processor-kwargs={\"max_pixels\": 4096}")  # fmt: skip
    assert values(own)["--limit-mm-per-prompt"] == '{"image": 2}'
    assert any("--mm-processor-kwargs changes how many tokens" in note for note in own.notes)


def test_sglang_is_given_its_tower_and_fetches_none(tmp_path: Path):
    plan = planned("sglang", in_folder(tmp_path, "gemma3-eyes"), "--mm-attention-backend=triton_attn")
    flags = values(plan)
    assert "--enable-multimodal" in flags and flags["--allowed-media-domains"] == "none.invalid"
    assert json.loads(flags["--limit-mm-data-per-request"] or "")["image"] == 100
    assert flags["--mm-attention-backend"] == "triton_attn" and abilities_of(plan).images


@pytest.mark.parametrize("flag", ["--allowed-media-domains=example.org", "--allowed-local-media-path=/"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_flag_opens_addresses_or_files(tmp_path: Path, engine: str, flag: str):
    if not schema.nearest(engine, "").has(flag.partition("=")[0]):
        return
    with pytest.raises(UsageError, match="read files or fetch addresses"):
        planned(engine, in_folder(tmp_path, "qwen3_vl"), flag)


def test_llamacpp_is_given_the_tower_and_its_limits(tmp_path: Path):
    plan = planned("llamacpp", in_gguf(tmp_path, "qwen3_vl"))
    flags = values(plan)
    assert flags["--mmproj"] == str(tmp_path / "mmproj-qwen3_vl.gguf")
    assert (flags["--image-min-tokens"], flags["--image-max-tokens"]) == ("4", "16")
    assert abilities_of(plan).images and any("ignores EXIF" in note for note in plan.notes)
    blind = planned("llamacpp", in_gguf(tmp_path, "qwen3_vl"), "--no-mmproj")
    assert "--mmproj" not in values(blind) and not abilities_of(blind).images


def test_a_picture_whose_rows_see_each_other_is_one_batch_of_llamacpp(tmp_path: Path):
    """Above its micro-batch the engine would end."""
    model = in_gguf(tmp_path, "gemma4-eyes")
    usual = values(planned("llamacpp", model))
    assert usual["--image-max-tokens"] == "280" and "--ubatch-size" not in usual
    large = values(planned("llamacpp", model, "--image-max-tokens=1120"))
    assert large["--ubatch-size"] == large["--batch-size"] == "1536"


def test_plans_of_text_have_nothing_of_pictures(tmp_path: Path):
    for engine, model in (("vllm", in_folder(tmp_path, TEXT)), ("sglang", in_folder(tmp_path, TEXT)),
                          ("llamacpp", in_gguf(tmp_path, TEXT))):  # fmt: skip
        plan = planned(engine, model)
        text = printed.text(plan).lower()
        assert not any(word in text for word in ("picture", "mm-", "mmproj", "media", "multimodal", "sees "))
        assert not abilities_of(plan).images


def test_a_model_at_the_hub_that_sees_is_planned_as_one(tmp_path: Path):
    model = of_catalogue(catalogued("google/gemma-3-27b-it"))
    assert model.tower is None and model.sees
    plan = planned("vllm", model)
    assert "--limit-mm-per-prompt" in values(plan) and "vision     encoder of" in printed.text(plan)


@pytest.mark.parametrize(
    "name, most, batch",
    [
        ("ggml-org/gemma-4-26B-A4B-it-GGUF", "280", "1536"),
        ("ggml-org/gemma-4-E4B-it-GGUF", "280", None),
        ("ggml-org/gemma-3-27b-it-GGUF", None, "1536"),
        ("unsloth/Qwen3.5-9B-GGUF", "16384", None),
    ],
)
def test_llamacpp_sees_with_a_gguf_of_the_hub(name: str, most: str | None, batch: str | None):
    """Its tower comes with it, is among its sizes, and makes no picture that would end the engine."""
    model = at_the_hub(name, "Q4_K_M")
    text = sum(part.bytes for part in model.anatomy.parts if part.role != "towers")
    assert model.sees and not model.here and text < sum(part.bytes for part in model.anatomy.parts)
    on = nodes_on("h100")

    def planned_there(*flags: str) -> DeployPlan:
        return drivers.driver("llamacpp").plan(PlanRequest(model, on, flags=flags))

    plan = planned_there()
    assert wrong(plan) == []
    flags = values(plan)
    assert "--mmproj-auto" in flags and "--mmproj" not in flags and abilities_of(plan).images
    assert flags.get("--image-max-tokens") == most and "--batch-size" not in flags
    assert any("without one, it cannot read pictures" in note for note in plan.notes)
    larger = values(planned_there("--image-max-tokens=1120"))
    assert larger.get("--ubatch-size") == batch
    blind = planned_there("--no-mmproj")
    assert "--mmproj-auto" not in values(blind) or not abilities_of(blind).images
    assert asyncio.run(PictureDoor().tokens(chat_with(drawn(32, 32)), plan)) is None


def test_a_context_shorter_than_a_picture_is_said(tmp_path: Path):
    model = in_gguf(tmp_path, "gemma4-eyes")
    assert any("up to 280 tokens" in note for note in planned("llamacpp", model, context=256).notes)
    assert not any("up to 280 tokens" in note for note in planned("llamacpp", model, context=512).notes)


def test_vllm_on_processors_counts_its_cache_of_pictures(tmp_path: Path):
    seeing, text = in_folder(tmp_path, "qwen3_vl"), in_folder(tmp_path, "qwen3")
    plans = [drivers.driver("vllm").plan(PlanRequest(model, CPU)) for model in (seeing, text)]
    assert plans[0].memory_bytes - plans[1].memory_bytes > 2 << 30


def test_our_own_engine_finds_the_tower_by_a_link(tmp_path: Path):
    model = in_gguf(tmp_path, "qwen3_vl")
    plan = drivers.driver("freehold").plan(PlanRequest(model, CPU, home=tmp_path / "home"))
    assert model.tower is not None and plan.links["mmproj-qwen3_vl.gguf"] == model.tower.file
    assert abilities_of(plan).images


# --- counts ---------------------------------------------------------------------------------------------


def counted(folder: Path, name: str, **limits: int) -> dict[str, tuple[int, int]]:
    """Return our count and llama.cpp's of each recorded size."""
    path = make.write_mmproj(make.config(name), folder / f"mmproj-{name}.gguf")
    with open_model_file(path) as opened:
        source = read_tower(opened)
    assert source is not None
    cfg = replace(source.cfg, **limits)
    pairs: dict[str, tuple[int, int]] = {}
    for size, tokens in RECORDED[name]["tokens"].items():
        width, height = map(int, size.split("x"))
        pairs[size] = source.tower.plan(cfg, width, height, None).tokens, tokens
    return pairs


@pytest.mark.parametrize("name", ["gemma3-eyes", "smolvlm"])
def test_llamacpp_counts_as_we_do_where_a_tower_has_tiles_or_one_size(tmp_path: Path, name: str):
    pairs = counted(tmp_path, name)
    assert len(pairs) >= 48 and all(ours == theirs for ours, theirs in pairs.values())


def test_llamacpp_counts_qwens_pictures_as_we_do_but_for_halves(tmp_path: Path):
    """With the limits that its plan gives; where a side is halfway between two multiples it takes the larger."""
    assert RECORDED["qwen3_vl"]["limits"] == [64, 16384]
    pairs = counted(tmp_path, "qwen3_vl", least=65_536, most=1 << 24)
    other = {size for size, (ours, theirs) in pairs.items() if ours != theirs}
    assert other and all(any(int(side) % 32 == 16 for side in size.split("x")) for size in other)
    assert all(0 <= theirs - ours <= 160 for ours, theirs in pairs.values())


def test_llamacpp_counts_gemma_4s_pictures_as_we_do_but_for_small_and_narrow_ones(tmp_path: Path):
    counts = llamacpp_counts(DeployedTower("a", "gemma4", 228, 280, True))
    assert [counts.least, counts.most] == RECORDED["gemma4-eyes"]["limits"]
    assert "10 % more tokens" in counts.note and "up to twice as many" in counts.note
    pairs = counted(tmp_path, "gemma4-eyes")
    other = {size: pair for size, pair in pairs.items() if pair[0] != pair[1]}
    for size, (ours, theirs) in other.items():
        short, long = sorted(map(int, size.split("x")))
        assert (long <= 100 and theirs <= 1.12 * ours) or (long > 10 * short and theirs < 2 * ours)
        assert theirs > ours
    assert len(other) <= 6


@pytest.mark.parametrize("name", ["", "pixtral", "gemma4", "qwen3vl", "qwen25vl", "glm4v"])
def test_where_llamacpp_counts_otherwise_its_plan_says_so(name: str):
    assert llamacpp_counts(DeployedTower("a", name, 1, 3025)).note


# --- before an engine -----------------------------------------------------------------------------------


def chat_with(data: bytes, count: int = 1) -> Job:
    image = Image(data=base64.b64encode(data).decode())
    return Job(messages=(Message("user", parts=(*[image] * count, "What?")),))


def drawn(width: int, height: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Drawing.new("RGB", (width, height), "red").save(out, kind)
    return out.getvalue()


@pytest.fixture
def plan(tmp_path: Path) -> DeployPlan:
    return planned("llamacpp", in_gguf(tmp_path, "qwen3_vl"))


def test_a_picture_passes_and_is_counted_as_ours(plan: DeployPlan):
    door, data = PictureDoor(), drawn(320, 240)
    asyncio.run(door.check(chat_with(data), plan))
    assert asyncio.run(door.tokens(chat_with(data, 2), plan)) == 2 * 12  # 4 x 3 blocks of the least limit
    blind = replace(plan, model=replace(plan.model, tower=None))
    assert asyncio.run(door.tokens(chat_with(data), blind)) is None


@pytest.mark.parametrize(
    "data, why",
    [
        (b"<svg onload='x'>", "the format SVG"),
        (b"%PDF-1.7", "the format PDF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG"),
        (b"", "empty"),
    ],
)
def test_what_is_no_picture_never_reaches_an_engine(plan: DeployPlan, data: bytes, why: str):
    with pytest.raises(UsageError, match=rf"messages\[0\]\.parts\[0\]: .*{why}"):
        asyncio.run(PictureDoor().check(chat_with(data), plan))


def test_a_bomb_is_refused_by_its_header(plan: DeployPlan):
    with pytest.raises(UsageError, match="pixels"):
        asyncio.run(PictureDoor().check(chat_with(makers.png_bomb(30_000, 30_000)), plan))


def test_a_picture_that_would_end_llamacpp_is_refused_by_its_sides(tmp_path: Path):
    """Of one whose rows are one batch it makes more tokens than its limit where a side is many times the other."""
    seeing = planned("llamacpp", in_gguf(tmp_path, "gemma4-eyes"))
    asyncio.run(PictureDoor().check(chat_with(drawn(8, 1600)), seeing))
    with pytest.raises(UsageError, match=r"8 x 1,601 pixels; .* a side up to 200 times the other"):
        asyncio.run(PictureDoor().check(chat_with(drawn(8, 1601)), seeing))


def test_a_format_that_llamacpp_lacks_is_refused_by_name(plan: DeployPlan):
    with pytest.raises(UsageError, match="format WebP; the engine of qwen3_vl reads PNG, JPEG, GIF"):
        asyncio.run(PictureDoor().check(chat_with(drawn(40, 40, "WEBP")), plan))
