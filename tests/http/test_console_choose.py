"""What the page says of models is what the command line prints, and asking for it costs the server nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner

from freehold.base import catalog
from freehold.base.config import load_settings
from freehold.cli.main import command_of
from freehold.run.store import Listed, Store
from freehold.serve.http.console import choose
from freehold.serve.http.console.choose import Questions, _pathless
from freehold.serve.http.core.keys import Ring
from freehold.serve.reports.card import quality_by_task
from freehold.serve.reports.models import models_json
from tests.http.test_door import key, secret
from tests.vectors.files import write_gguf

MACHINES = ("rtx-4090", "2xh100", "m3-max:64gb", "zen4-2vcpu", "l4")
MODELS = tuple(model.id for model in catalog.models()[3::47])
ASKED = [
    *(("fit", {"model": model, "on": machine}) for model, machine in zip(MODELS, MACHINES * 2, strict=False)),
    *(("license", {"name": model}) for model in MODELS[:4]),
    *(("cost", {"model": model, "on": "2xh100", "users": "8"}) for model in MODELS[:2]),
    ("advise", {"task": "code completion", "on": "rtx-4090", "for": "commercial"}),
]
# The process that answers gives way to all others: a list took a minute of the tests beside it.
PROCESS = "from freehold.serve.reports import __main__ as process; process.NICE = 0; process.main()"
COMPANY = "[company]\npurpose = 'commercial'\nusers = 2000\nseat = 'DE'\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tests.http.conftest import start

    folder = tmp_path_factory.mktemp("choose")
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text("adopt = false\n" + COMPANY)
    keys = Ring([key("ann", models=("qwen3:*",)), key("all"), key("root", kind="admin")])
    running = start(folder, offline=True, keys=keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "COMMAND", (sys.executable, "-P", "-c", PROCESS))
        yield running
    running.end()


def asked(server, verb, words, name="all"):
    headers = {"Authorization": f"Bearer {secret(name)}"}
    query = urlencode({"verb": verb, **words}, doseq=True)
    return server.client.get(f"/console/api/choose?{query}", headers=headers)


def printed(server, verb, words):
    args = [words[name] for name in ("model", "name", "task") if name in words]
    rest = {name: value for name, value in words.items() if name not in ("model", "name", "task")}
    args += [f"--{name.replace('_', '-')}={value}" for name, value in rest.items()]
    command = command_of(verb)
    settings = load_settings({"FREEHOLD_HOME": str(server.store.settings.home)})
    return CliRunner().invoke(command, [*args, "--json"], obj=settings, standalone_mode=False).stdout


def end_process(server):
    held = server.doors.server.part(Questions)
    if held is not None and (child := held.process("fit").child) is not None:
        child.kill()
        child.wait(60)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "verb, words", ASKED, ids=lambda each: each if isinstance(each, str) else "-".join(each.values())
)
def test_the_page_has_the_bytes_that_the_command_line_prints(server, verb, words):
    answer = asked(server, verb, words)
    assert answer.status_code == 200 and answer.text == printed(server, verb, words)


@pytest.mark.heavy
def test_why_says_the_same_but_for_what_is_free_at_the_moment(server):
    one, other = (
        asked(server, "why", {"model": MODELS[0]}).json(),
        json.loads(printed(server, "why", {"model": MODELS[0]})),
    )
    assert one.pop("here").keys() == other.pop("here").keys() and one == other


def test_a_key_is_not_told_where_files_of_the_server_lie():
    said = json.dumps(
        {"path": "/home/ann/models/a.gguf", "source": "https://huggingface.co/a/b", "n": 1.5}, indent=1
    )
    told = json.loads(_pathless(said + "\n"))
    assert told == {"path": "a.gguf", "source": "https://huggingface.co/a/b", "n": 1.5}


@pytest.mark.parametrize("path", ["/etc/passwd", "./a.gguf", "~/a.gguf", "../a", ""])
@pytest.mark.parametrize("verb", ["fit", "why"])
def test_no_question_opens_a_file_of_the_server_by_its_path(server, verb, path):
    answer = asked(server, verb, {"model": path}, "root")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.heavy
def test_no_question_tells_which_files_and_users_there_are(server, tmp_path, monkeypatch):
    for folder in (tmp_path, server.store.settings.home):
        (folder / "org").mkdir(exist_ok=True)
        write_gguf("llama", folder / "org" / "there", dtype="Q8_0")
    monkeypatch.chdir(tmp_path)
    end_process(server)  # the next one begins in this folder
    for verb in ("fit", "why"):
        for one, other in (
            ("org/there", "org/gone"),
            ("~root/x", "~no-such-user/x"),
            ("org/../org/there", "gone/../gone/x"),
        ):
            answers = [asked(server, verb, {"model": name}, "root") for name in (one, other)]
            texts = [a.text.replace(name, "NAME") for a, name in zip(answers, (one, other), strict=True)]
            assert texts[0] == texts[1] and answers[0].status_code == answers[1].status_code >= 400
    end_process(server)


@pytest.mark.heavy
def test_errors_are_the_verb_s_with_its_way_out(server):
    unknown = asked(server, "fit", {"model": "qwen3:8x"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    wrong = asked(server, "fit", {"model": MODELS[0], "contxt": "1"})
    assert wrong.status_code == 400 and "did you mean context?" in wrong.text
    assert asked(server, "fit", {"model": MODELS[0], "context": "32k"}).status_code == 400
    assert asked(server, "pull", {"model": MODELS[0]}).status_code == 400


@pytest.mark.heavy
def test_a_scoped_key_asks_about_its_models_alone(server):
    own = {"model": "qwen3:8b", "on": "l4"}
    assert asked(server, "fit", own, "ann").status_code == 200
    assert asked(server, "fit", {**own, "model": MODELS[0]}, "ann").status_code == 404
    assert asked(server, "license", {"name": "qwen3:8b"}, "ann").status_code == 403
    rows = server.client.get(
        "/console/api/models", headers={"Authorization": f"Bearer {secret('ann')}"}
    ).json()["models"]
    assert rows and all(row["name"].startswith("qwen3:") for row in rows)


@pytest.mark.heavy
def test_a_row_has_the_figures_of_fit_and_license(server):
    headers = {"Authorization": f"Bearer {secret('root')}"}
    found = server.client.get("/console/api/models", headers=headers).json()
    assert found["purpose"] == "commercial" and len(found["models"]) == len(catalog.models())
    row = next(row for row in found["models"] if row["name"] == "qwen3:0.6b")
    verdict = asked(server, "license", {"name": row["id"]}).json()["verdicts"][0]
    assert row["verdict"]["answer"] == verdict["answer"] and row["lab"] and row["country"] == "CN"
    (fit,) = asked(server, "fit", {"model": row["id"], "quant": row["quant"]}).json()["fits"]
    assert (row["memory"], row["fits"]) == (fit["memory"]["total"], fit["fits"])
    # Speeds here are measured, and the two answers may be of two measurements: each within the other's bounds.
    for speed, whole in (
        (row["decode"], fit.get("decode_tok_s")),
        (row["prefill"], fit.get("prefill_tok_s")),
    ):
        assert (speed is None) == (whole is None)
        assert speed is None or (speed["low"] < whole["high"] and whole["low"] < speed["high"])


def test_a_download_in_progress_is_listed_with_what_is_known_of_the_model(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path), "FREEHOLD_OFFLINE": "1"})
    known = next(model for model in catalog.models() if model.name and quality_by_task(model, "Q4_K_M"))
    part = Listed(known.name, "incomplete", "freehold", "gguf", 10, 3, 0, "", tmp_path, "", "", "", "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "list", lambda store: [part])
        (row,) = models_json(settings, held=True)["models"]
    assert (row["state"], row["pull"], row["id"]) == ("incomplete", known.name, known.id) and row["quality"]


@pytest.mark.heavy
def test_a_caller_that_leaves_ends_the_work_and_the_next_one_is_answered(server):
    held = server.doors.server.part(Questions)
    process = held.process("advise")
    pid = process.child.pid
    line = "GET /console/api/choose?verb=advise&task=chat HTTP/1.1\r\nHost: x\r\n"
    line += f"Authorization: Bearer {secret('all')}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as left:
        left.sendall(line.encode())
        until = time.monotonic() + 30
        while not process.turn.locked() and time.monotonic() < until:
            time.sleep(0.001)
    while process.turn.locked():
        time.sleep(0.005)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert asked(server, "fit", {"model": "qwen3:8b", "on": "rtx-4090"}).status_code == 200


def test_two_who_ask_the_same_are_answered_by_one_computation(server):
    asked(server, "fit", {"model": "qwen3:4b", "on": "h200"})  # what answers is made with the first question
    held, made = server.doors.server.part(Questions), []
    whole = held._answered

    async def counted(verb, words):
        made.append(verb)
        return await whole(verb, words)

    held._answered = counted
    words, found = {"model": "qwen3:14b", "on": "h200"}, []
    threads = [
        threading.Thread(target=lambda: found.append(asked(server, "fit", words).text)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held._answered = whole
    assert made == ["fit"] and len(set(found)) == 1


def listed(server, query=""):
    headers = {"Authorization": f"Bearer {secret('root')}"}
    return server.client.get(f"/console/api/models{query}", headers=headers).json()


@pytest.mark.heavy
def test_a_list_that_is_kept_is_shown_at_once_while_it_is_computed_again(server):
    listed(server, "?newest=1")
    held, slow = server.doors.server.part(Questions), threading.Event()
    whole, made = held._answered, []

    async def counted(verb, words):
        made.append(verb)
        while not slow.is_set():
            await asyncio.sleep(0.01)
        return await whole(verb, words)

    held._answered = counted
    for name, kept in held._kept.items():
        held._kept[name] = replace(kept, until=0.0)
    first, second = listed(server), listed(server)
    assert made == ["models"]  # once for both
    slow.set()
    assert first["newer"] and second["newer"] and len(first["models"]) == len(catalog.models())
    newest = listed(server, "?newest=1")
    held._answered = whole
    assert not newest["newer"] and newest["models"]


@pytest.mark.heavy
def test_a_models_details_do_not_wait_for_the_list(server):
    asked(server, "license", {"name": MODELS[0]})  # the first question makes the part
    held, slow, asked_for_list = server.doors.server.part(Questions), threading.Event(), threading.Event()
    whole = held._answered

    async def stuck(verb, words):
        if verb == "models":
            asked_for_list.set()
            while not slow.is_set():
                await asyncio.sleep(0.01)
        return await whole(verb, words)

    held._answered = stuck
    held._kept.clear()
    waiting = threading.Thread(target=listed, args=(server, "?newest=1"))
    waiting.start()
    try:
        assert asked_for_list.wait(60)
        assert asked(server, "why", {"model": "qwen3:8b"}).status_code == 200
        assert waiting.is_alive()
    finally:
        slow.set()
        waiting.join()
        held._answered = whole


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["config.toml", "catalogue.toml"])
def test_a_list_from_before_a_change_of_what_it_hangs_on_is_not_shown(server, name):
    home = server.store.settings.home
    listed(server, "?newest=1")
    text = (home / name).read_text() if (home / name).exists() else ""
    (home / name).write_text(text.replace("2000", "3000") + "\n")
    found = listed(server)
    assert not found["newer"] and len(found["models"]) == len(catalog.models())
