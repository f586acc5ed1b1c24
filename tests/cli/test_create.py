"""`freehold create`: a Modelfile makes a name that list, show, run and rm know."""

from __future__ import annotations

import json

import pytest

import freehold
from freehold.base.config import load_settings
from freehold.base.types import Message
from freehold.cli import main
from freehold.run.store import Store
from tests.vectors.files import write_gguf


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")
    return tmp_path


def test_a_modelfile_makes_a_model_beside_its_file(home, capsys):
    file = home / "Modelfile"
    file.write_text(
        "FROM ./tiny.gguf\nPARAMETER num_predict 3\nPARAMETER seed 1\nSYSTEM Be brief.\nREQUIRES 1\n"
    )
    assert main.run(["create", "brief", "-f", str(file)]) == 0
    out = capsys.readouterr()
    assert out.out == "brief\n" and "note: REQUIRES" in out.err
    assert main.run(["list", "--json"]) == 0
    rows = {m["name"]: m for m in json.loads(capsys.readouterr().out)["models"]}
    assert rows["brief"]["base"] == "tiny"
    told = {"seed": 1, "max_tokens": 3}
    with (
        freehold.load("brief", context=64, threads=1) as made,
        freehold.load("tiny", context=64, threads=1) as base,
    ):
        same = [Message("system", "Be brief."), Message("user", "hi")]
        assert made.chat("hi").token_ids == base.chat(same, **told).token_ids
    assert main.run(["rm", "brief"]) == 0 and main.run(["show", "brief"]) == 1


def test_a_file_that_is_no_modelfile_is_named(home, capsys):
    assert main.run(["create", "x", "-f", str(home / "nope")]) == 2
    (home / "bad").write_text("FROM tiny\nWHAT x\n")
    assert main.run(["create", "x", "-f", str(home / "bad")]) == 2
    assert "line 2" in capsys.readouterr().err


def test_show_of_a_created_model_says_its_own_parameters_and_system_text(home, capsys):
    file = home / "Modelfile"
    file.write_text(
        "FROM ./tiny.gguf\nPARAMETER temperature 0.25\nPARAMETER num_predict 3\nPARAMETER stop END\n"
        'SYSTEM """Be brief.\nBe kind."""\nMESSAGE user hi\nLICENSE MIT\n'
    )
    assert main.run(["create", "brief", "-f", str(file)]) == 0
    capsys.readouterr()
    assert main.run(["show", "brief", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["model"]
    own = "PARAMETER of brief"
    assert card["sampling"]["temperature"] == {"value": 0.25, "origin": own}
    assert card["sampling"]["max_tokens"] == {"value": 3, "origin": own}
    assert card["sampling"]["top_p"]["origin"] != own
    assert (card["system"], card["stop"], card["messages"], card["licence"]) == (
        "Be brief.\nBe kind.",
        ["END"],
        1,
        "MIT",
    )
    assert main.run(["show", "brief"]) == 0
    out = capsys.readouterr().out
    assert "temperature 0.25 (PARAMETER of brief)" in out and "Be brief." in out and "Be kind." in out
    assert main.run(["show", "tiny", "--json"]) == 0
    assert "system" not in json.loads(capsys.readouterr().out)["model"]


def test_options_make_a_model_without_a_modelfile(home, capsys):
    tiny = str(home / "tiny.gguf")
    assert main.run(["create", "pirate", "--from", tiny, "--system", "Say arr.", "--temperature", "0.3"]) == 0
    assert capsys.readouterr().out == "pirate\n"
    made = Store(load_settings()).resolve("pirate").overlay
    assert made is not None and (made.base, made.system) == ("tiny", "Say arr.")
    assert made.read.sampling == {"temperature": 0.3}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--system", "x"], "need --from MODEL"),
        (["--from", "tiny", "-f", "Modelfile"], "name two bases"),
        (["--from", "tiny", "--logit-bias", "1=2"], "cannot be kept in a model"),
        ([], "make a model without one: --from MODEL"),
    ],
)
def test_options_that_make_no_model_are_refused_with_the_way_out(home, monkeypatch, capsys, options, part):
    monkeypatch.chdir(home)
    assert main.run(["create", "x", *options]) == 2
    assert part in capsys.readouterr().err


def test_cp_gives_a_model_another_name_without_its_weights(home, capsys):
    assert main.run(["pull", str(home / "tiny.gguf")]) == 0
    capsys.readouterr()
    assert main.run(["cp", "tiny", "small"]) == 0
    assert capsys.readouterr().out == "small\n"
    store = Store(load_settings())
    assert store.resolve("small").path == store.resolve("tiny").path
    assert main.run(["list"]) == 0
    small = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("small"))
    record = store.show("small").held
    assert f" {record} B " in small and "ready, weights of tiny" in small  # the bytes of tiny count once
    assert main.run(["show", "small"]) == 0
    shown = capsys.readouterr().out
    assert "shared with tiny" in shown and "sha256" not in shown  # a record's digest is not the file's
    assert main.run(["cp", "tiny", "tiny"]) == 2  # a name of its own is never replaced
    assert main.run(["rm", "small"]) == 0 and store.resolve("tiny")
