"""What was used: the ledger's sums as the command line has them, a key's own alone, and null where nothing is known."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from freehold.adapt.graduation import keep_state
from freehold.base.config import load_settings
from freehold.cli.cost import command as cost
from freehold.cli.ledger import command as ledger
from freehold.route.router.graduation import folder_of
from freehold.route.router.opening import LiveGateway, open_models
from freehold.route.router.toml.table import Outside
from freehold.run.store import Store
from freehold.serve.http.console import usage as page
from freehold.serve.http.core.keys import Ring
from freehold.serve.worker.models import EngineModels
from tests.cli.test_cost_ledger import GATEWAY
from tests.cli.test_ledger import fill
from tests.http.conftest import start
from tests.http.fakes import Script
from tests.http.test_chat import CHAT
from tests.http.test_console_runs import Chats
from tests.http.test_door import key, secret
from tests.router.ledger.rows import row

URL = "/console/api/usage"
VOLATILE = ("since", "until")  # the moment of the question


def told(server, name, query=""):
    answer = server.client.get(URL + query, headers={"Authorization": f"Bearer {secret(name)}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def server(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "gateway.toml").write_text(GATEWAY)
    (home / "config.toml").write_text(f'adopt = false\ngateway = "{home / "gateway.toml"}"\n')
    now = time.time()
    fill(
        home,
        row(at=now - 60, target="small", nano=1, key="ann"),
        row(at=now - 50, target="big", nano=3_000_000_007, key="bob"),
        row(at=now - 2 * 86400, target="big", nano=104, estimated=True, outcome="left", key="ann"),
    )
    running = start(tmp_path, offline=True, keys=Ring([key("ann"), key("bob"), key("root", kind="admin")]))
    yield running
    running.end()


def printed(server, command, *args):
    settings = load_settings({"FREEHOLD_HOME": str(server.store.settings.home)})
    return json.loads(
        CliRunner().invoke(command, [*args, "--json"], obj=settings, standalone_mode=False).stdout
    )


@pytest.mark.heavy
def test_sums_and_savings_are_those_that_the_command_line_prints(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    found = told(server, "root", "?days=7")
    for by in ("model", "key", "day"):
        want = printed(server, ledger, "--since", "7d", "--by", by)
        assert json.dumps(found["ledger"][f"by_{by}"]) == json.dumps(want["sums"])
        assert found["ledger"]["total"] == want["total"]
    assert [one["nano"] for one in found["ledger"]["by_key"]] == [3_000_000_007, 105]
    want = printed(server, cost, "--from-ledger", "--since", "7d")
    assert found["savings_error"] is None
    same = ({k: v for k, v in each.items() if k not in VOLATILE} for each in (found["savings"], want))
    assert next(same) == next(same)


def test_a_key_sees_its_own_rows_and_no_savings(server):
    found = told(server, "ann")
    assert found["ledger"]["total"]["nano"] == 105 and found["savings"] is None
    assert [one["key"] for one in found["ledger"]["by_key"]] == ["ann"]
    assert told(server, "ann", "?days=1")["ledger"]["total"]["nano"] == 1


def test_accounts_have_the_tokens_of_each_key_by_day(server):
    for name in ("ann", "bob"):
        headers = {"Authorization": f"Bearer {secret(name)}"}
        assert server.client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    rows = told(server, "root")["accounts"]
    assert {one["key"] for one in rows} == {"ann", "bob"} and all(one["tokens"] > 0 for one in rows)
    assert [one["key"] for one in told(server, "ann")["accounts"]] == ["ann"]


def test_where_nothing_is_known_there_is_null(serving):
    found = serving().client.get(URL).json()
    assert (found["ledger"], found["savings"], found["savings_error"]) == (None, None, None)
    assert found["accounts"] is None


@pytest.mark.parametrize("query", ["?days=0", "?days=x", "?days=99999", "?since=7d"])
def test_a_wrong_question_names_what_is_expected(serving, query):
    answer = serving().client.get(URL + query)
    assert answer.status_code == 400 and "expected" in answer.json()["error"]["message"]
    assert page.MOST_DAYS < 99999


def test_without_a_ledger_the_receipts_of_the_own_chats_are_summed(tmp_path):
    running = start(tmp_path, Script(text="one two"), offline=True)
    try:
        assert running.client.get("/console/api/me").json()["has"] == []
        mine = Chats(running)
        receipts = [mine.follow(mine.run(text)["run"]).end["receipt"] for text in ("hi", "again")]
        found = running.client.get(URL).json()
        (model,) = found["chats"]["by_model"]
        wanted = sum(each["tokens"]["answer"] for each in receipts)
        assert found["ledger"] is None and (model["model"], model["answers"]) == ("fake:1b", 2)
        assert model["completion"] == found["chats"]["total"]["completion"] == wanted > 0
        seconds = sum(each["timings"]["total_s"] for each in receipts)
        assert found["chats"]["total"]["seconds"] == pytest.approx(seconds, abs=0.01)
        assert len(found["chats"]["by_day"]) == 1
        assert running.client.get("/console/api/me").json()["has"] == ["usage"]
        with mine.folder.writer(mine.id) as writer:  # as an import may bring it
            odd = writer.open_answer(parent=None, model="odd")
            writer.end(odd.id, "stop", receipt={"tokens": {"prompt": "many"}, "timings": {}})
        assert running.client.get(URL).json()["chats"]["total"]["answers"] == 2
    finally:
        running.end()


def test_pages_are_named_that_have_something_in_them(tmp_path):
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "one.toml").write_text("")
    (tmp_path / "trainings.jsonl").write_text("")
    running = start(tmp_path, offline=True)
    try:
        assert running.client.get("/console/api/me").json()["has"] == ["runs"]
        assert running.owner.get("/console/api/me").json()["has"] == ["runs", "deployments"]
    finally:
        running.end()


def test_routes_that_teach_are_shown_from_rented_to_owned(tmp_path):
    from tests.adapt import test_idle_graduation as idle

    idle.gateway(tmp_path)
    idle.keep_texts(tmp_path, 0, 7)

    async def rows():
        store = Store(load_settings({"FREEHOLD_HOME": str(tmp_path)}))
        live = LiveGateway(tmp_path / "gateway.toml", Outside(environment={"SELLER_KEY": "k"}))
        models = open_models(EngineModels(store), live, store)
        server: Any = SimpleNamespace(models=models, store=store, part=lambda kind: None)
        try:
            return page._own_models(server)
        finally:
            await models.close(0.0)

    (first,) = asyncio.run(rows())
    assert (first["route"], first["stage"], first["texts"], first["at"]) == ("tickets", "rented", 7, 18)
    assert (first["student"], first["teacher"], first["low"], first["running"]) == (
        "house",
        "big",
        None,
        False,
    )
    keep_state(tmp_path, idle.state(tmp_path, 0.9))
    (second,) = asyncio.run(rows())
    assert (second["stage"], second["low"], second["message"]) == (
        "measured",
        0.9,
        "house reaches 0.95; move?",
    )
    (folder_of(tmp_path, "tickets") / "state.json").write_text("{")
    (third,) = asyncio.run(rows())
    assert third["stage"] == "rented" and "is damaged" in third["message"]
