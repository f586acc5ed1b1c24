"""A model that is recognised and not computed is refused by name with what is missing, by every verb, unfetched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import freehold
from freehold.base import catalog
from freehold.base.catalog.model import Model
from freehold.base.config import load_settings
from freehold.base.errors import ModelNotFound, UnsupportedModel
from freehold.choose.advisor import machine
from freehold.run.local.runnable import check_runs, unrunnable
from freehold.run.models.binding.bind import missing_part
from freehold.run.models.tiny.make import gguf_bytes
from freehold.run.store import Store
from freehold.serve.worker.models import EngineModels
from tests.vectors.files import write_gguf

Run = Callable[..., tuple[int, str, str]]


def _recognised() -> Iterator[Model]:
    """Yield a model of each architecture that is known and not computed."""
    seen: set[str] = set()
    for model in catalog.models(Path("/nowhere/catalogue.toml")):
        if missing_part(model.architecture) and model.architecture not in seen:
            seen.add(model.architecture)
            yield model


REFUSED = [*_recognised()]


@pytest.fixture(autouse=True)
def unfetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine, "rates_now", lambda: machine.Rates(40.0, 1000.0))
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr(Store, "_fetch", lambda *_: pytest.fail("fetched"))


@pytest.mark.parametrize("verb", ["run", "pull", "serve", "bench", "embed"])
@pytest.mark.parametrize("spelling", ["deepseek-ai/DeepSeek-V4-Flash", "DeepSeek-V4-Flash"])
def test_verb_that_would_fetch_refuses_with_what_is_missing(run: Run, verb: str, spelling: str):
    status, out, err = run(verb, spelling, *(["Hi"] if verb in ("run", "embed") else []))
    assert (status, out) == (1, "")
    assert "deepseek-ai/DeepSeek-V4-Flash: Freehold's engine does not support" in err
    assert "it has compressed sparse attention" in err


@pytest.mark.parametrize("model", REFUSED, ids=lambda m: m.architecture)
def test_every_recognised_architecture_is_refused_before_it_is_fetched(run: Run, model: Model):
    lack = missing_part(model.architecture)
    for verb in ("pull", "show", "fit"):
        status, out, err = run(verb, model.id)
        assert lack in out + err and status == (1 if verb == "pull" else 0), verb
    for call in (freehold.pull, check_runs):
        with pytest.raises(UnsupportedModel, match="does not support"):
            call(model.id)


def test_fit_says_once_what_the_engine_lacks(run: Run):
    _, out, _ = run("fit", "deepseek-ai/DeepSeek-V4-Flash")
    assert out.count("compressed sparse attention") == 1 and "does not fit" not in out


def test_advice_leaves_it_out_for_what_is_missing(run: Run):
    _, out, _ = run("advise", "chat", "--json", "--all")
    (found,) = (e for e in json.loads(out)["ruled_out"] if e["id"] == "deepseek-ai/DeepSeek-V4-Flash")
    assert "compressed sparse attention" in json.dumps(found)


def test_copy_of_a_refused_model_is_refused_and_what_was_made_of_it_is_not_judged():
    with pytest.raises(UnsupportedModel, match="deepseek4"):
        check_runs("unsloth/DeepSeek-V4-Flash-GGUF:Q4_K_M")
    check_runs("someone/DeepSeek-V4-Flash-Distill-Qwen3-8B")  # its file decides


def test_name_that_runs_and_has_no_short_name_is_answered_with_its_id():
    with pytest.raises(ModelNotFound) as e:
        check_runs("Qwen3-30B-A3B-Thinking-2507")
    assert "write the whole id" in e.value.hint


def test_file_is_refused_for_its_architecture_before_its_tokenizer(run: Run, tmp_path: Path):
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(gguf_bytes({"general.architecture": "deepseek4"}, {}))
    status, _, err = run("run", str(strange), "Hi")
    assert status == 1 and "compressed sparse attention" in err


def test_server_lists_no_model_that_it_would_refuse(tmp_path: Path):
    store = Store(load_settings())
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(gguf_bytes({"general.architecture": "deepseek4"}, {}))
    store.pull(str(strange))
    store.pull(str(write_gguf("llama", tmp_path / "plain.gguf", dtype="Q8_0")))
    assert "compressed sparse attention" in unrunnable(strange)
    models = EngineModels(store)
    assert [m.name for m in asyncio.run(models.names())] == ["plain"]
