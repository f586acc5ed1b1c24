"""Tools over HTTP: who may use them, that no request configures one, and that an approval holds for what was read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from freehold.base.types import Image
from freehold.serve.http.core.keys import KeyFile, Ring, made
from freehold.serve.tools.mcp.configured import tool_server
from freehold.serve.tools.mcp.permissions import Permissions, pinned
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_off_the_loop import in_thread
from tests.tools.hostile import png
from tests.tools.world import below, program

pytest.importorskip("mcp")
CALLS = Script(text="", calls=(("echo", '{"text": "hi"}'),))
MCP = {"type": "mcp", "server_label": "h"}
ANN, BOB = "fh-ann-0123456789abcdef", "fh-bob-0123456789abcdef"
TOOLS = "/console/api/tools"


def configure(folder: Path, **servers: dict[str, Any]) -> None:
    """Write config.toml; JSON's texts and lists are TOML's."""
    lines = []
    for name, table in servers.items():
        lines += [f"[mcp.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (folder / "config.toml").write_text("\n".join(lines))


@pytest.fixture
def tooled(serving: Callable[..., Running], tmp_path: Path) -> Callable[..., Running]:
    def begin(script: Script = CALLS, how: str = "", *words: str, keyed: bool = False) -> Running:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        configure(folder, h={**program(how, *words), "keys": ["ann"]}, other=program())
        kept = KeyFile(folder / "keys.json")
        if keyed:
            for name, secret in (("ann", ANN), ("bob", BOB)):
                kept.add(made(name, secret, admin=False, models=(), rate="", tokens=""))
        return serving(script, home=folder, keys=Ring(file=kept) if keyed else Ring())

    return begin


def asked(client: httpx2.Client, **more: Any) -> httpx2.Response:
    body = {"model": "fake:1b", "input": "say hi", "tools": [MCP], **more}
    return client.post("/v1/responses", json=body)


def items(answer: httpx2.Response, kind: str) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [item for item in answer.json()["output"] if item["type"] == kind]


def approval(item: dict[str, Any], approve: bool = True, **more: Any) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": item["id"], "approve": approve, **more}


def test_a_call_waits_for_its_approval_and_runs_before_the_next_words(tooled):
    server = tooled()
    first = asked(server.owner)
    (listed,), (request,) = items(first, "mcp_list_tools"), items(first, "mcp_approval_request")
    assert [tool["name"] for tool in listed["tools"]] == ["echo"] and items(first, "mcp_call") == []
    assert (request["server_label"], request["name"], request["arguments"]) == ("h", "echo", '{"text": "hi"}')
    server.models.play(Script("It says hi."))
    second = asked(server.owner, previous_response_id=first.json()["id"], input=[approval(request)])
    (call,) = items(second, "mcp_call")
    assert (call["output"], call["error"], call["approval_request_id"]) == (
        '{"text": "hi"}',
        None,
        request["id"],
    )
    turns = server.models.served["fake:1b"].jobs[-1].messages
    assert [(m.role, m.content) for m in turns] == [
        ("user", "say hi"),
        ("assistant", ""),
        ("tool", '{"text": "hi"}'),
    ]
    third = asked(server.owner, previous_response_id=second.json()["id"], input="and?")
    assert items(third, "mcp_call") == []  # it is not run again
    assert len(server.models.served["fake:1b"].jobs[-1].messages) == 5


@pytest.mark.parametrize("sees", [True, False])
def test_a_tool_s_picture_is_before_the_model_now_and_in_later_turns(tooled, sees: bool):
    pytest.importorskip("PIL")
    server = tooled(Script(text="", calls=CALLS.calls, sees=sees), "picture")
    first = asked(server.owner)
    (request,) = items(first, "mcp_approval_request")
    server.models.play(Script("Red.", sees=sees))
    second = asked(server.owner, previous_response_id=first.json()["id"], input=[approval(request)])
    (call,) = items(second, "mcp_call")
    url = Image.of(png()).as_url
    assert call["images"] == [url] and "A picture is left out here" in call["output"]
    third = asked(server.owner, previous_response_id=second.json()["id"], input="and?")
    whole = [*first.json()["output"], approval(request), *second.json()["output"]]
    fourth = asked(server.owner, input=[{"role": "user", "content": "say hi"}, *whole], store=False)
    for answer, at in ((second, -3), (third, -2), (fourth, -1)):
        assert answer.status_code == 200, answer.text
        results = [m for m in server.models.served["fake:1b"].jobs[at].messages if m.role == "tool"]
        assert [m.parts[1:] for m in results] == [(Image.of(png()),) if sees else ()]
        warned = answer.json()["freehold"]["warnings"]
        assert ("pictures of tools were left out: fake:1b reads text only" in warned) is not sees
        assert results[0].content.endswith("reads text only.]") is not sees


@pytest.mark.parametrize("url", ["https://images.example/a.png", "file:///etc/passwd", "data:,x", 7])
def test_what_a_client_writes_among_a_call_s_pictures_is_a_data_url(tooled, url: object):
    server = tooled(Script("Red.", sees=True))
    call = {"type": "mcp_call", "id": "mcp_1", "server_label": "h", "name": "echo", "arguments": "{}"}
    answer = asked(server.owner, input=[{**call, "output": "seen", "images": [url]}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content")


def test_a_call_made_again_with_the_same_result_says_so_to_the_model_within_one_answer(tooled):
    server, outputs = tooled(), []
    answer = asked(server.owner)
    for said in (CALLS, CALLS, Script("It says hi."), CALLS, Script("It still does.")):
        given: Any = [approval(request) for request in items(answer, "mcp_approval_request")]
        server.models.play(said)
        answer = asked(server.owner, previous_response_id=answer.json()["id"], input=given or "and now?")
        outputs += [call["output"] for call in items(answer, "mcp_call")]
    assert ["same as before" in output for output in outputs] == [False, True, True, False]


def test_a_denial_reaches_the_model_with_its_reason_and_runs_nothing(tooled):
    server = tooled(CALLS, "die")
    first = asked(server.owner)
    (request,) = items(first, "mcp_approval_request")
    server.models.play(Script("As you wish."))
    denial = approval(request, approve=False, reason="not now")
    second = asked(server.owner, previous_response_id=first.json()["id"], input=[denial])
    assert items(second, "mcp_call") == []
    said = server.models.served["fake:1b"].jobs[-1].messages[-1]
    assert said.role == "tool" and "did not allow" in said.content and "not now" in said.content


def test_an_approval_is_for_the_tool_as_it_was(tooled, tmp_path: Path):
    state = tmp_path / "state.json"
    state.write_text("{}")
    server = tooled(CALLS, "changing", str(state))
    first = asked(server.owner)
    (request,) = items(first, "mcp_approval_request")
    state.write_text('{"description": "Sends your files away."}')
    server.models.play(Script("Hm."))
    second = asked(server.owner, previous_response_id=first.json()["id"], input=[approval(request)])
    (call,) = items(second, "mcp_call")
    assert call["output"] is None and "changed since" in call["error"]


@pytest.mark.heavy
def test_a_client_that_leaves_in_a_call_ends_it_and_its_server(tooled):
    server = tooled(CALLS, "hang")
    first = asked(server.owner)
    (request,) = items(first, "mcp_approval_request")
    with below() as left:
        body = {"model": "fake:1b", "input": [approval(request)], "previous_response_id": first.json()["id"]}
        with pytest.raises(httpx2.ReadTimeout):
            server.owner.post("/v1/responses", json={**body, "tools": [MCP]}, timeout=3)
        until = time.monotonic() + 30  # half of the time that a call has
        while hanging() and time.monotonic() < until:
            time.sleep(0.05)
    assert left == []


def hanging() -> bool:
    words = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            words.append(each.cmdline())
    return any("hang" in each or "freehold.serve.tools.mcp.guard" in each for each in words)


def test_a_stream_announces_the_items_in_order(tooled):
    server = tooled()
    answer = asked(server.owner, stream=True)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    kinds = [event["type"] for event in events]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    begun, done = (
        kinds.index("response.mcp_list_tools.in_progress"),
        kinds.index("response.mcp_list_tools.completed"),
    )
    shown = [e["item"]["type"] for e in events if e["type"] == "response.output_item.done"]
    assert begun < done and shown == ["mcp_list_tools", "mcp_approval_request"]


@pytest.mark.parametrize(
    "more",
    [
        {"server_url": "https://evil.example/mcp"},
        {"connector_id": "connector_gmail"},
        {"authorization": "token"},
        {"headers": {"a": "b"}},
        {"command": ["sh", "-c", "id"]},
        {"require_approval": "never"},
        {"require_approval": {"never": {"tool_names": ["echo"]}}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_no_request_configures_a_server_or_lowers_what_is_asked(tooled, more: dict[str, Any]):
    answer = asked(tooled().owner, tools=[{**MCP, **more}])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == f"tools[0].{next(iter(more))}"


def test_a_server_that_nobody_configured_is_not_found(tooled):
    answer = asked(tooled().owner, tools=[{"type": "mcp", "server_label": "nope"}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_tool_server")


def test_without_a_key_tools_want_the_owner(tooled):
    server = tooled()
    assert asked(server.client).status_code == 403 and server.client.get(TOOLS).status_code == 403
    assert server.client.post(f"{TOOLS}/h/try", json={}).status_code == 403
    assert "tools" not in server.client.get("/console/api/me").json()["can"]
    assert [row["name"] for row in server.owner.get(TOOLS).json()["servers"]] == ["h", "other"]


def test_a_key_has_the_servers_that_name_it_and_permissions_of_its_own(tooled, tmp_path: Path):
    server = tooled(keyed=True)
    ann, bob = ({"Authorization": f"Bearer {secret}"} for secret in (ANN, BOB))
    rows = server.client.get(TOOLS, headers=ann).json()["servers"]
    assert [row["name"] for row in rows] == ["h"] and not {"where", "env", "log", "keys"} & rows[0].keys()
    assert server.client.get(TOOLS, headers=bob).json() == {"servers": [], "permissions": []}
    assert "tools" in server.client.get("/console/api/me", headers=ann).json()["can"]
    assert "tools" not in server.client.get("/console/api/me", headers=bob).json()["can"]
    body = {"model": "fake:1b", "input": "x", "tools": [{"type": "mcp", "server_label": "other"}]}
    unknown = {**body, "tools": [{"type": "mcp", "server_label": "neverwas"}]}
    answers = [
        server.client.post("/v1/responses", json=b, headers=ann).json()["error"] for b in (body, unknown)
    ]
    assert answers[0]["code"] == answers[1]["code"] == "no_tool_server"


def test_tools_are_listed_with_digests_and_permissions_revoked(tooled, tmp_path: Path, monkeypatch):
    server = tooled()
    row = server.owner.post(f"{TOOLS}/h/try", json={}).json()
    (tool,) = row["tools"]
    assert (row["state"], tool["name"], len(tool["digest"])) == ("idle", "echo", 64)
    table = {**program(""), "keys": ["ann"]}
    raw = {"name": "echo", "description": "Echoes.", "inputSchema": tool["input_schema"]}
    (echo,), _ = pinned(tool_server("h", table, ""), [raw])
    assert echo.digest == tool["digest"]
    Permissions.of(tmp_path / "data").grant(echo, "always")
    (standing,) = server.owner.get(TOOLS).json()["permissions"]
    written = in_thread(monkeypatch, Permissions, "_write")
    assert (standing["digest"], standing["scope"]) == (echo.digest, "always")
    assert server.owner.delete(f"{TOOLS}/permissions/{echo.digest}").status_code == 200
    assert server.owner.delete(f"{TOOLS}/permissions/{echo.digest}").status_code == 404
    assert server.owner.get(TOOLS).json()["permissions"] == []
    assert len(written) == 1 and written[0].startswith(("asyncio", "uvloop")), "once, and off the loop"


def test_a_server_that_fails_is_named_with_its_last_line(tooled):
    server = tooled()
    (Path(server.doors.settings.home or "") / "config.toml").write_text(
        '[mcp.h]\ncommand = ["/no/such/program"]\n'
    )
    row = server.owner.post(f"{TOOLS}/h/try", json={}).json()
    assert row["state"] == "failed" and "No such file" in row["trouble"]
