"""An adapter in a model's weights is the model with the adapter, in each file's own layout, or is not kept."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt import fuse as fusing
from freehold.adapt import fused_folder
from freehold.adapt.evals.divergence import held_out_text
from freehold.adapt.fuse import fuse
from freehold.adapt.quantize import quantising
from freehold.adapt.quantize.planning import QuantizeRequest
from freehold.adapt.quantize.quantising import Watching, quantise
from freehold.adapt.stages import descent
from freehold.adapt.teaching import FACTS
from freehold.base.config import Settings, load_settings
from freehold.base.errors import FreeholdError, NotMet, UsageError
from freehold.run.engine import Engine, scoring
from freehold.run.formats import open_model_file
from freehold.run.models.load import load_model
from freehold.run.models.lora import load_adapter
from freehold.run.models.tiny import make
from freehold.run.store import Store
from tests.vectors.adapters import write_for

IDS = [5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(quantising, "held_out_text", lambda: held_out_text()[:900])
    monkeypatch.setattr(fusing, "FACTS", FACTS[:2])
    return load_settings()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")


def adapter_for(model: Path, folder: Path, seed: int = 1) -> Path:
    return write_for(load_model(model, threads=1), folder, rank=4, seed=seed, dtype="F32", strength=0.2)


def logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    model = load_model(path, threads=1)
    engine = Engine(model, context=64, kv_type="f32", speculate=False)
    packed = load_adapter(adapter, model, "one") if adapter else None
    return scoring.logits(engine, IDS, adapter=packed)


@pytest.mark.heavy
def test_a_fused_gguf_computes_what_the_adapter_does(settings: Settings, tiny: Path, tmp_path: Path):
    adapter = adapter_for(tiny, tmp_path / "one")
    record = fuse(f"{tiny}+{adapter}", tmp_path / "out", quant="F16", until=1.0, threads=1, config=settings)
    expected = logits(tiny, adapter)
    assert np.abs(expected - logits(tiny)).max() > 0.5  # it changes something
    assert np.abs(expected - logits(tmp_path / "out" / "model.gguf")).max() < 0.1
    assert record["verb"] == "fuse" and 0 <= record["divergence"]["mean"] < record["bound"] == 0.1
    assert [each["verb"] for each in descent(tmp_path / "out" / "model.gguf")] == ["", "fuse"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.gguf", "receipt.json"]


@pytest.mark.heavy
def test_two_adapters_are_added_up(settings: Settings, tiny: Path, tmp_path: Path):
    first, second = (adapter_for(tiny, tmp_path / f"a{n}", n) for n in (1, 2))
    fuse(f"{tiny}+{first}", tmp_path / "one", quant="F16", until=1.0, threads=1, config=settings)
    fuse(f"{tiny}+{first}+{second}", tmp_path / "both", quant="F16", until=1.0, threads=1, config=settings)
    expected = logits(tmp_path / "one" / "model.gguf", second)
    assert np.abs(expected - logits(tmp_path / "both" / "model.gguf")).max() < 0.1


@pytest.mark.heavy
def test_a_folder_of_safetensors_keeps_its_types_and_its_other_files(settings: Settings, tmp_path: Path):
    folder = make.write_safetensors(make.config("llama"), tmp_path / "hf")
    adapter = adapter_for(folder, tmp_path / "one")
    fuse(f"{folder}+{adapter}", tmp_path / "out", until=1.0, threads=1, config=settings)
    assert {p.name for p in folder.iterdir()} | {"receipt.json"} == {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert np.abs(logits(folder, adapter) - logits(tmp_path / "out")).max() < 0.1
    with open_model_file(folder) as before, open_model_file(tmp_path / "out") as after:
        assert {n: t.type for n, t in before.tensors.items()} == {n: t.type for n, t in after.tensors.items()}
    with pytest.raises(UsageError, match="keeps its types"):
        fuse(f"{folder}+{adapter}", tmp_path / "q", quant="Q8_0", config=settings)


@pytest.mark.heavy
def test_a_result_beyond_the_bound_is_not_left_behind(settings: Settings, tiny: Path, tmp_path: Path):
    adapter = adapter_for(tiny, tmp_path / "one")
    with pytest.raises(NotMet, match="at most 1e-06 is allowed, so it is not kept"):
        fuse(
            f"{tiny}+{adapter}",
            tmp_path / "out",
            quant="Q4_0",
            bound=1e-6,
            until=1.0,
            threads=1,
            config=settings,
        )
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.heavy
def test_changed_matrices_of_few_bits_get_eight_by_default(settings: Settings, tiny: Path, tmp_path: Path):
    ref = Store(settings).resolve(str(tiny))
    quantise(ref, tmp_path / "four", QuantizeRequest(quant="Q4_0"), settings)
    base = tmp_path / "four" / "model.gguf"
    adapter = adapter_for(base, tmp_path / "one")
    fuse(f"{base}+{adapter}", tmp_path / "out", until=1.0, threads=1, config=settings)
    with open_model_file(tmp_path / "out" / "model.gguf") as result, open_model_file(base) as before:
        types = {name: tensor.type.name for name, tensor in result.tensors.items()}
        assert types["blk.0.attn_q.weight"] == "Q8_0"
        same = "token_embd.weight"
        assert np.array_equal(result.tensors[same].raw, before.tensors[same].raw)
    chain = descent(tmp_path / "out" / "model.gguf")
    assert [each["verb"] for each in chain] == ["", "fuse"]


def test_quantize_takes_a_model_with_an_adapter(settings: Settings, tiny: Path, tmp_path: Path):
    adapter, ref = adapter_for(tiny, tmp_path / "one"), Store(settings).resolve(str(tiny))
    record = quantise(ref, tmp_path / "q", QuantizeRequest(quant="Q8_0"), settings, adapters=[adapter])
    assert record["inputs"]["parents"] and len(record["chain"]) == 1
    expected = logits(tiny, adapter)
    apart, moved = (np.abs(expected - logits(path)).mean() for path in (tmp_path / "q" / "model.gguf", tiny))
    assert apart < 0.2 * moved


@pytest.mark.heavy
def test_an_interrupted_fusion_continues_to_the_same_bytes(settings: Settings, tiny: Path, tmp_path: Path):
    adapter = adapter_for(tiny, tmp_path / "one")
    named = {"quant": "Q8_0", "until": 1.0, "threads": 1, "config": settings}
    fuse(f"{tiny}+{adapter}", tmp_path / "whole", **named)

    def stop(done: int, total: int, choice: object) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse(f"{tiny}+{adapter}", tmp_path / "again", watching=Watching(on_tensor=stop), **named)
    assert not (tmp_path / "again").exists()
    fuse(f"{tiny}+{adapter}", tmp_path / "again", **named)
    one, other = ((tmp_path / name / "model.gguf").read_bytes() for name in ("whole", "again"))
    assert one == other


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Fail writes beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_a_full_disk_is_one_line_without_a_result_and_the_same_command_continues(
    settings: Settings, tmp_path: Path, form: str
):
    write = {"gguf": make.write_gguf, "safetensors": make.write_safetensors}[form]
    model = write(make.config("llama"), tmp_path / ("tiny.gguf" if form == "gguf" else "hf"))
    adapter = adapter_for(model, tmp_path / "one")
    named = {"until": 1.0, "threads": 1, "config": settings}
    with files_of_at_most(60_000), pytest.raises(FreeholdError, match=r"full|large") as failure:
        fuse(f"{model}+{adapter}", tmp_path / "out", **named)
    assert "\n" not in failure.value.message and failure.value.hint
    assert not (tmp_path / "out").exists()
    left = [path.name for path in (tmp_path / ".out.part").rglob("*")] if form == "gguf" else []
    assert not any(name.endswith(".new") for name in left)
    if form == "safetensors":  # nothing was whole, so nothing is left
        assert not (tmp_path / ".out.part").exists()
    fuse(f"{model}+{adapter}", tmp_path / "out", **named)
    assert np.abs(logits(model, adapter) - logits(weights_of(tmp_path / "out"))).max() < 0.1
    assert not (tmp_path / ".out.part").exists()


def weights_of(out: Path) -> Path:
    return out / "model.gguf" if (out / "model.gguf").exists() else out


@pytest.mark.heavy
def test_an_interrupted_folder_continues_with_the_files_that_are_whole(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make.write_safetensors(make.config("llama"), tmp_path / "hf")
    adapter = adapter_for(folder, tmp_path / "one")
    named = {"until": 1.0, "threads": 1, "config": settings}
    fuse(f"{folder}+{adapter}", tmp_path / "whole", **named)
    written: list[str] = []

    def stop(tensor: Any, file: Any) -> None:
        written.append(tensor.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        changed(tensor, file)

    def interrupted(opened: Any, run: Any) -> None:
        raise KeyboardInterrupt

    changed = fused_folder._write_changed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fused_folder, "_write_changed", stop)
        fuse(f"{folder}+{adapter}", tmp_path / "again", **named)
    assert not list(tmp_path.glob("*again*"))  # half a file was removed, and the folder with it
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fused_folder, "_beside", interrupted)
        fuse(f"{folder}+{adapter}", tmp_path / "again", **named)
    (kept,) = (tmp_path / ".again.part").glob("*.safetensors")
    before = kept.stat().st_mtime_ns
    fuse(f"{folder}+{adapter}", tmp_path / "again", **named)
    again, whole = (tmp_path / name / kept.name for name in ("again", "whole"))
    assert again.stat().st_mtime_ns == before and again.read_bytes() == whole.read_bytes()


def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing(
    settings: Settings, tiny: Path, tmp_path: Path
):
    other = make.write_gguf(make.config("gemma3"), tmp_path / "other.gguf")
    stranger = adapter_for(other, tmp_path / "stranger")
    (tmp_path / "broken").mkdir()
    names = (f"{tiny}+{stranger}", f"{tiny}+{tmp_path / 'broken'}", f"{tiny}+./missing", str(tiny))
    for name in names:
        with pytest.raises(FreeholdError) as failure:
            fuse(name, tmp_path / "out", config=settings)
        assert "\n" not in failure.value.message and failure.value.hint
    twice = adapter_for(tiny, tmp_path / "one")
    with pytest.raises(UsageError, match="is named twice"):
        fuse(f"{tiny}+{twice}+{twice}", tmp_path / "out", config=settings)
    assert not list(tmp_path.glob("*out*"))
