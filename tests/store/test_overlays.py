"""Models made from others: kept, found under every spelling, and changing jobs as they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import BadModelFile, ModelNotFound, StoreError, UnsupportedModel, UsageError
from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.run.formats import open_lora
from freehold.run.store import Store
from freehold.run.store import overlays as records
from freehold.run.store.create import Recipe, copy, make
from freehold.run.store.overlays import Overlay, Overlays, overlaid
from freehold.serve.worker.wire import PROTOCOL, FromServer, Open, Reader, Writer
from tests.vectors.adapters import Case, write_peft
from tests.vectors.adapters import write_gguf as write_lora
from tests.vectors.files import write_gguf

MARIO = Overlay(
    "mario",
    "tiny",
    parameters={"temperature": 0.1, "stop": ["END"], "num_predict": 9, "seed": 4},
    system="You are Mario.",
    messages=(("user", "hi"), ("assistant", "It's-a me!")),
)
USER, OTHER = Message("user", "who?"), Message("system", "You are Luigi.")
OWN = tuple(Message(role, text) for role, text in MARIO.messages)


@pytest.fixture
def made(tmp_path):
    """A store with a tiny model, and one made from it."""
    store = Store(Settings(home=tmp_path / "home", offline=True))
    store.pull(str(write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")))
    store.overlays.write(MARIO)
    return store


def test_a_job_gets_what_it_does_not_say_itself():
    job = overlaid(Job(messages=(USER,), sampling={"seed": 1}), MARIO)
    assert job.messages == (Message("system", "You are Mario."), *OWN, USER)
    assert job.sampling == {"temperature": 0.1, "seed": 1}
    assert (job.stop, job.max_tokens) == (("END",), 9)
    said = Job(messages=(OTHER, USER), stop=("X",), max_tokens=3)
    job = overlaid(said, MARIO)
    assert job.messages == (OTHER, *OWN, USER) and (job.stop, job.max_tokens) == (("X",), 3)


def test_a_text_is_not_given_messages():
    job = overlaid(Job(prompt="def"), MARIO)
    assert (job.prompt, job.messages, job.max_tokens) == ("def", None, 9)


@pytest.mark.parametrize(
    "name", ["mario", "Mario", "mario:latest", "registry.ollama.ai/library/mario", " mario "]
)
def test_every_spelling_finds_it(made, name):
    found = made.resolve(name)
    assert found.name == "mario" and found.overlay == MARIO and found.path == made.resolve("tiny").path
    assert made.show(name).base == "tiny"


def test_models_of_their_own_are_found_with_latest_too(made):
    assert made.resolve("tiny:latest").name == "tiny"


def test_another_process_sees_it_at_once(made):
    other = Store(made.settings)
    assert other.overlays.find("mario")
    made.overlays.write(replace(MARIO, name="luigi"))
    assert other.overlays.find("luigi")
    made.overlays.remove("mario")
    assert other.overlays.find("mario") is None


def test_it_is_listed_with_what_it_stands_on(made):
    rows = {m.name: m for m in made.list()}
    assert rows["mario"].base == "tiny" and rows["mario"].bytes == rows["tiny"].bytes
    assert rows["mario"].held < 2000 and rows["mario"].digest not in ("", rows["tiny"].digest)
    json.dumps(rows["mario"].as_json())
    json.dumps(made.resolve("mario").as_json())


def test_an_engine_of_its_own_is_told_all_of_it(made):
    ref = made.resolve("mario")
    [got] = Reader(FromServer).push(Writer().frame(Open(PROTOCOL, "0", ref)))
    assert got.model == replace(ref, overlay=got.model.overlay) and got.model.overlay.read == MARIO.read
    assert (got.model.overlay.system, got.model.overlay.messages) == (MARIO.system, MARIO.messages)


def test_what_others_stand_on_is_not_deleted(made):
    with pytest.raises(UsageError, match="mario is based on"):
        made.remove("tiny")
    removed = made.remove("mario")
    assert not removed.forgotten and removed.freed > 0
    made.remove("tiny")
    with pytest.raises(ModelNotFound):
        made.resolve("mario")


def test_one_whose_base_is_gone_says_so(made):
    made.overlays.write(replace(MARIO, name="lost", base="nowhere"))
    assert {m.name: m.state for m in made.list()}["lost"] == "vanished"
    with pytest.raises((ModelNotFound, StoreError)):
        made.resolve("lost")


def test_a_damaged_record_counts_as_absent(made):
    path = made.overlays.path(MARIO)
    for damage in (
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 2}',
        path.read_text().replace("tiny", "x" * 10)[:-9],
        path.read_text().replace('"adapter": ""', '"adapter": ".."'),
    ):
        path.write_text(damage)
        fresh = Store(made.settings)
        assert fresh.overlays.find("mario") is None and [m.name for m in fresh.list()] == ["tiny"]


def test_making_from_something_made_is_flat(made):
    overlay = make(made, "Luigi:2", Recipe("mario", {"top_k": 3}, system=""), lambda _: None)
    assert (overlay.name, overlay.base, overlay.system) == ("luigi:2", "tiny", "")
    assert overlay.parameters == {**MARIO.parameters, "top_k": 3} and overlay.messages == MARIO.messages


def test_a_copy_is_another_name(made):
    assert copy(made, "mario", "twin").system == MARIO.system
    assert copy(made, "tiny", "bare").base == "tiny"
    with pytest.raises(UsageError, match="model of its own"):
        copy(made, "mario", "tiny")
    with pytest.raises(ModelNotFound):
        copy(made, "nope", "x")


def test_what_does_nothing_is_noted(made):
    recipe = Recipe("tiny", {"num_ctx": 2048, "num_gpu": 1}, template="{{ .Prompt }}")
    notes = "\n".join(make(made, "x", recipe, lambda _: None).notes)
    assert "num_ctx" in notes and "num_gpu" in notes and "Go's language" in notes


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_an_adapter_is_copied_and_goes_with_the_last_that_names_it(made, tmp_path, form):
    case = Case("llama", targets=("q_proj",))
    source = (
        write_peft(case, tmp_path / "lora") if form == "peft" else write_lora(case, tmp_path / "lora.gguf")
    )
    sql = make(made, "sql", Recipe("tiny", adapter=str(source)), lambda _: None)
    kept, again = Path(sql.adapter), Store(made.settings).overlays.find("sql")
    assert (
        kept.parent == made.settings.home / "adapters" and open_lora(kept).digest == open_lora(source).digest
    )
    assert again == sql and "adapters" not in made.overlays.path(sql).read_text()  # the home may move
    assert overlaid(Job(prompt="x"), sql).adapter == kept.stem
    assert copy(made, "sql", "twin").adapter == sql.adapter
    made.remove("sql")
    assert kept.exists()
    assert make(made, "twin", Recipe("tiny"), lambda _: None).adapter == "" and not kept.exists()
    assert not list(kept.parent.iterdir())


def test_what_is_no_adapter_is_refused_and_nothing_is_kept(made, tmp_path):
    model = tmp_path / "tiny.gguf"
    for source in (tmp_path / "nope", tmp_path, model):
        with pytest.raises((ModelNotFound, BadModelFile, UnsupportedModel)):
            make(made, "x", Recipe("tiny", adapter=str(source)), lambda _: None)
    assert made.overlays.find("x") is None and not (made.settings.home / "adapters").exists()


def test_what_is_refused_fetches_nothing_and_keeps_no_adapter(made, tmp_path, monkeypatch):
    fetched = []
    refused = Recipe(base="far", parameters={"temperature": -1})
    with pytest.raises(UsageError, match="temperature"):
        make(made, "x", refused, lambda _: None, lambda ref, _: fetched.append(ref))
    monkeypatch.setattr(records, "MAX_OVERLAYS", 1)
    adapter = write_lora(Case("llama", targets=("q_proj",)), tmp_path / "lora.gguf")
    with pytest.raises(UsageError, match="made from others"):
        make(made, "x", Recipe(base="tiny", adapter=str(adapter)), lambda _: None)
    assert not fetched and not [*(made.settings.home / "adapters").iterdir()]


def test_a_record_too_long_to_be_read_again_is_refused(tmp_path):
    overlays = Overlays(tmp_path)
    wide = "\U0001f600" * (1 << 18)  # twelve bytes a character, as the record has it
    with pytest.raises(UsageError, match="the model's record has"):
        overlays.write(Overlay(name="wide", base="b", system=wide, template=wide))
    assert overlays.list() == [] and not list((tmp_path).glob("overlays/*"))
    overlays.write(Overlay(name="one", base="b", system=wide))
    assert overlays.find("one").system == wide


def test_a_record_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    overlays, read, names = Overlays(tmp_path), records._read, []
    monkeypatch.setattr(records, "_read", lambda path, home: names.append(path.stem[:2]) or read(path, home))
    for n in range(20):
        overlays.write(Overlay(name=f"n{n % 10}", base="b", system=str(n)))
        assert overlays.find(f"n{n % 10}").system == str(n)
    assert names == [f"n{n % 10}" for n in range(20)]
    overlays.remove("n3")
    assert overlays.find("n3") is None and len(overlays.list()) == 9
    other = Overlays(tmp_path)
    other.write(Overlay(name="n4", base="b", system="of another program"))
    assert overlays.find("n4").system == "of another program"
