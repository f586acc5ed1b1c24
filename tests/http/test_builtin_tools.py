"""Built-in tools of /v1/responses by the openai client: code and commands that run here, or at the client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from freehold.base.platforms import can_confine
from freehold.serve.http.openai.responses.containers import ToolContainers
from tests.http.conftest import Running, start
from tests.http.fakes import Script

MODEL = "fake:1b"
CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
SHELL: Any = {"type": "shell", "environment": {"type": "container_auto"}}
confined = pytest.mark.skipif(not can_confine(), reason="the kernel confines no process")


def python(code: str, text: str = "") -> Script:
    return Script(text=text, calls=(("python", json.dumps({"code": code})),))


def shell(*commands: str, **more: Any) -> Script:
    return Script(text="", calls=(("shell", json.dumps({"commands": commands, **more})),))


def turns(*scripts: Script, end: str = "Done.") -> Script:
    return Script(rounds=(*scripts, Script(text=end)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(tmp_path_factory.mktemp("tools"), tools=("code_interpreter", "shell"))
    yield running
    running.end()


@pytest.fixture
def ask(server: Running) -> Iterator[Callable[..., Any]]:
    """Return a function from a script and fields to a response."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def respond(script: Script, **fields: Any) -> Any:
            server.models.play(script)
            return client.responses.create(**{"model": MODEL, "input": "Go.", "tools": [CODE], **fields})

        yield respond


def jobs(server: Running) -> list[Any]:
    return server.models.served[MODEL].jobs


@confined
def test_code_runs_and_its_output_is_read_by_the_next_round(server: Running, ask: Callable[..., Any]):
    script = turns(python("x = 6 * 7\nprint(x)", "Let me see."), end="It is 42.")
    response = ask(script, include=["code_interpreter_call.outputs"])
    first, call, last = response.output
    assert (first.type, call.type, last.type) == ("message", "code_interpreter_call", "message")
    assert (call.code, call.status) == ("x = 6 * 7\nprint(x)", "completed")
    assert [each.model_dump() for each in call.outputs] == [{"type": "logs", "logs": "42\n"}]
    assert call.container_id.startswith("cntr_") and response.output_text.endswith("It is 42.")
    assert response.status == "completed"
    said, result = jobs(server)[1].messages[-2:]
    assert said.tool_calls[0].name == "python" and (result.role, result.content) == ("tool", "42")
    assert response.usage.input_tokens == 1 + len(["Go.", "Let", "me", "see.", "42"])  # of both rounds


@confined
def test_outputs_are_null_unless_they_are_included_and_a_later_request_has_them(
    server: Running, ask: Callable[..., Any]
):
    first = ask(turns(python("secret = 17\nprint('seventeen')")))
    assert first.output[0].outputs is None
    second = ask(
        turns(python("print(secret + 1)")),
        previous_response_id=first.id,
        include=["code_interpreter_call.outputs"],
    )
    assert jobs(server)[0].messages[2].content == "seventeen"  # the model sees what the client did not want
    assert second.output[0].outputs[0].logs == "18\n"  # the same container, with its names
    assert second.output[0].container_id == first.output[0].container_id


@confined
def test_a_client_that_keeps_the_chat_itself_sends_the_items_back(server: Running, ask: Callable[..., Any]):
    first = ask(turns(python("print(5)")), store=False, include=["code_interpreter_call.outputs"])
    items = [item.model_dump(exclude_none=True) for item in first.output]
    ask(
        turns(),
        store=False,
        input=[{"role": "user", "content": "Go."}, *items, {"role": "user", "content": "On."}],
    )
    assert [m.role for m in jobs(server)[0].messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert jobs(server)[0].messages[2].content == "5"
    items[0]["outputs"] = None
    again = ask(turns(), store=False, input=[*items, {"role": "user", "content": "On."}])
    assert "not in the request" in jobs(server)[0].messages[1].content
    assert "not sent" in " ".join(again.model_dump()["freehold"]["warnings"])


@confined
def test_a_stream_has_each_event_once_and_in_order(server: Running, ask: Callable[..., Any]):
    server.models.play(turns(python("print(1)"), shell("echo hi; echo no >&2"), end="Both."))
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        client.responses.stream(
            model=MODEL, input="Go.", tools=[CODE, SHELL], include=["code_interpreter_call.outputs"]
        ) as stream,
    ):
        events = list(stream)
        last = stream.get_final_response()
    kinds = [e.type.removeprefix("response.") for e in events]
    wanted = [
        *("output_item.added", "code_interpreter_call.in_progress", "code_interpreter_call_code.delta"),
        *("code_interpreter_call_code.done", "code_interpreter_call.interpreting"),
        *("code_interpreter_call.completed", "output_item.done"),
        *(
            "output_item.added",
            "shell_call_command.added",
            "shell_call_command.delta",
            "shell_call_command.done",
        ),
        *("output_item.done", "output_item.added", "shell_call_output_content.delta"),
        *("shell_call_output_content.done", "output_item.done", "output_item.added"),
    ]
    at = kinds.index("output_item.added")
    # The text that begins each answer of the scripts is empty, so that items are those of calls.
    assert kinds[at : at + len(wanted)] == wanted
    numbers = [e.sequence_number for e in events if hasattr(e, "sequence_number")]
    assert numbers == sorted(set(numbers)) and kinds[-1] == "completed"
    assert [item.type for item in last.output] == [
        *("code_interpreter_call", "shell_call", "shell_call_output", "message")
    ]
    output = last.output[2].output[0]
    assert (output.stdout, output.stderr, output.outcome.exit_code) == ("hi\n", "no\n", 0)
    assert last.output[1].environment.container_id == last.output[0].container_id
    assert last.output_text == "Both."


@confined
def test_files_pass_from_uploads_to_code_and_commands(server: Running, ask: Callable[..., Any]):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        id = client.files.create(file=("sales.csv", b"a,b\n1,2\n"), purpose="user_data").id
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [id]}}
    code = "rows = open('sales.csv').read()\nopen('out.txt', 'w').write(rows.upper())"
    response = ask(turns(python(code), shell("cat out.txt", "pwd", "exit 3")), tools=[tool, SHELL])
    outputs = response.output[2].output
    assert [o.stdout for o in outputs] == ["A,B\n1,2\n", "/mnt/data\n", ""]
    assert outputs[2].outcome.exit_code == 3
    assert "[exit status 3]" in jobs(server)[2].messages[-1].content
    explicit = {"type": "code_interpreter", "container": response.output[0].container_id}
    again = ask(
        turns(python("print(len(rows))")), tools=[explicit], include=["code_interpreter_call.outputs"]
    )
    assert again.output[0].outputs[0].logs == "8\n"


@confined
def test_an_upload_replaces_a_link_that_a_command_made_and_does_not_follow_it(
    server: Running, ask: Callable[..., Any], tmp_path: Path
):
    outside = tmp_path / "outside.txt"
    outside.write_text("as before")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ids = [
            client.files.create(file=(name, b"uploaded"), purpose="user_data").id
            for name in ("link.txt", "folder")
        ]
    made = ask(turns(shell(f"ln -s {outside} link.txt", "mkdir folder", "readlink link.txt")), tools=[SHELL])
    assert made.output[1].output[2].stdout.strip() == str(outside)
    container = made.output[0].environment.container_id
    chat = {"previous_response_id": made.id}

    def with_file(id: str) -> list[Any]:
        return [{"type": "shell", "environment": {"type": "container_auto", "file_ids": [id]}}]

    answer = ask(turns(shell("cat link.txt")), tools=with_file(ids[0]), **chat)
    assert answer.output[0].environment.container_id == container
    assert answer.output[1].output[0].stdout == "uploaded"
    assert outside.read_text() == "as before"
    with pytest.raises(openai.BadRequestError, match="a folder by the name 'folder'"):
        ask(turns(), tools=with_file(ids[1]), **chat)


@confined
def test_errors_of_code_are_results(ask: Callable[..., Any]):
    response = ask(turns(python("1 / 0")), include=["code_interpreter_call.outputs"])
    assert (
        response.output[0].status == "completed" and "ZeroDivisionError" in response.output[0].outputs[0].logs
    )
    ended = ask(turns(python("import os; os._exit(1)")), include=["code_interpreter_call.outputs"])
    assert ended.output[0].status == "failed" and ended.status == "completed"


@confined
def test_a_picture_is_an_output(server: Running, ask: Callable[..., Any]):
    pytest.importorskip("matplotlib")
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])"
    response = ask(turns(python(code)), include=["code_interpreter_call.outputs"])
    assert response.output[0].outputs[-1].url.startswith("data:image/png;base64,")
    assert "[a picture, shown to the user]" in jobs(server)[1].messages[-1].content


@confined
def test_rounds_calls_and_tokens_are_limited(server: Running, ask: Callable[..., Any]):
    loop = Script(rounds=tuple(python(f"print({n})") for n in range(40)))
    response = ask(loop)
    assert len(jobs(server)) == 17 and jobs(server)[-1].tool_choice == "none"
    response = ask(loop, max_tool_calls=2)
    calls = [item for item in response.output if item.type == "code_interpreter_call"]
    assert [c.status for c in calls[:2]] == ["completed", "completed"] and jobs(server)[
        2
    ].tool_choice == "none"
    same = ask(python("print(1)"))  # whose result it has
    assert jobs(server)[2].tool_choice == "none" and same.status == "completed"
    short = ask(python("print(1)"), max_output_tokens=2)
    assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"


@confined
def test_a_required_call_is_required_once(server: Running, ask: Callable[..., Any]):
    ask(turns(python("print(1)")), tool_choice={"type": "code_interpreter"})
    assert [(j.tool_choice, j.tool_name) for j in jobs(server)] == [("required", "python"), ("auto", "")]


@confined
def test_long_output_is_cut_at_both_ends(server: Running, ask: Callable[..., Any]):
    response = ask(turns(shell("seq 100000", max_output_length=100)), tools=[SHELL])
    output = response.output[1]
    assert output.max_output_length == 100
    assert output.output[0].stdout.startswith("1\n2\n") and output.output[0].stdout.endswith("100000\n")
    assert "left out" in output.output[0].stdout and len(output.output[0].stdout) < 200
    slow = ask(turns(shell("sleep 60", timeout_ms=200)), tools=[SHELL])
    assert slow.output[1].output[0].outcome.type == "timeout"


@confined
def test_a_function_beside_it_ends_the_response_and_both_are_answered(
    server: Running, ask: Callable[..., Any]
):
    function: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
    both = Script(text="", calls=(("python", '{"code": "print(3)"}'), ("weather", "{}")))
    first = ask(both, tools=[CODE, function])
    code, call = first.output
    assert (code.type, code.status, call.type) == ("code_interpreter_call", "completed", "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    ask(turns(), tools=[CODE, function], previous_response_id=first.id, input=[output])
    assert [m.content for m in jobs(server)[0].messages if m.role == "tool"] == ["3", "sun"]


@confined
def test_code_does_not_leave_its_container(ask: Callable[..., Any]):
    code = (
        "import os, socket\nfor p in ('/etc/passwd', os.path.expanduser('~'), '..'):\n"
        "    try:\n        print(os.path.isdir(p) and os.listdir(p) or open(p).read())\n"
        "    except OSError as e:\n        print('no')\n"
        "try:\n    socket.create_connection(('127.0.0.1', 1))\nexcept OSError:\n    print('no net')"
    )
    response = ask(turns(python(code)), include=["code_interpreter_call.outputs"])
    assert response.output[0].outputs[0].logs.endswith("no net\n")
    assert "root:" not in response.output[0].outputs[0].logs


@confined
def test_too_many_bytes_are_removed(
    server: Running, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("freehold.serve.http.openai.responses.containers.MAX_FILES_BYTES", 1 << 20)
    code = "open('big', 'wb').write(b'x' * (4 << 20))"
    response = ask(
        turns(python(code), python("import os; print(os.listdir())")),
        include=["code_interpreter_call.outputs"],
    )
    assert response.output[0].status == "failed" and "are removed" in response.output[0].outputs[0].logs
    assert response.output[1].outputs[0].logs == "[]\n"


@confined
def test_labels_of_a_container_go_with_it(server: Running, ask: Callable[..., Any]):
    first = ask(turns(python("x = 1")), extra_headers={"X-Freehold-Label": "private"})
    before = len(server.models.origins)
    ask(turns(), tools=[{"type": "code_interpreter", "container": first.output[0].container_id}])
    assert server.models.origins[before:] and all(
        "private" in o.labels for o in server.models.origins[before:]
    )


@confined
def test_containers_are_of_one_key_and_few(server: Running, ask: Callable[..., Any]):
    id = ask(turns(python("x = 1"))).output[0].container_id
    for _ in range(4):
        ask(turns(python("x = 1")))
    with pytest.raises(openai.NotFoundError, match="no container"):  # removed for a newer one
        ask(turns(), tools=[{"type": "code_interpreter", "container": id}])
    containers = server.doors.server.part(ToolContainers)
    assert containers is not None and containers.find("another key", id) is None


def test_tools_that_the_owner_does_not_allow_are_refused(serving: Callable[..., Running]):
    server = serving(Script())
    for tool in (CODE, SHELL):
        body = {"model": MODEL, "input": "x", "tools": [tool]}
        answer = server.client.post("/v1/responses", json=body)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "tool_not_allowed"
        assert f"freehold serve --tool {tool['type']}" in answer.json()["error"]["message"]


def test_a_machine_that_cannot_confine_refuses(
    server: Running, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., Any]
):
    where = "freehold.serve.http.openai.responses.containers"
    monkeypatch.setattr(f"{where}._confined", set())
    monkeypatch.setattr(f"{where}.can_enclose", lambda: "it needs Linux")
    with pytest.raises(openai.BadRequestError, match="cannot be confined here: it needs Linux"):
        ask(turns())


@pytest.mark.parametrize(
    "tool, param",
    [
        ({"type": "code_interpreter"}, "tools[0].container"),
        ({"type": "code_interpreter", "container": {"type": "big"}}, "tools[0].container.type"),
        ({"type": "code_interpreter", "container": "cntr_none"}, "tools[0].container"),
        ({"type": "shell", "environment": {"type": "container_auto", "skills": [{}]}}, "tools[0].skills"),
        (
            {
                "type": "shell",
                "environment": {"type": "container_auto", "network_policy": {"type": "allowlist"}},
            },
            "tools[0].network_policy",
        ),
    ],
)
@confined
def test_what_a_container_cannot_be_is_refused(server: Running, tool: dict[str, Any], param: str):
    server.models.play(Script())
    answer = server.client.post("/v1/responses", json={"model": MODEL, "input": "x", "tools": [tool]})
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param


def test_a_local_shell_is_run_by_the_client(serving: Callable[..., Running]):
    server = serving(shell("ls", timeout_ms=500))
    tools: Any = [{"type": "shell", "environment": {"type": "local"}}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model=MODEL, input="Go.", tools=tools)
        (call,) = first.output
        assert call.type == "shell_call" and call.environment and call.environment.type == "local"
        assert (call.action.commands, call.action.timeout_ms) == (["ls"], 500)
        server.models.play(Script())
        outcome = {"type": "exit", "exit_code": 1}
        output: Any = {
            "type": "shell_call_output",
            "call_id": call.call_id,
            "output": [{"stdout": "a.txt", "stderr": "warned", "outcome": outcome}],
        }
        client.responses.create(model=MODEL, tools=tools, previous_response_id=first.id, input=[output])
    assert jobs(server)[0].messages[-1].content == "a.txt\nwarned\n[exit status 1]"
    assert json.loads(jobs(server)[0].messages[1].tool_calls[0].arguments)["commands"] == ["ls"]


def test_a_patch_is_applied_by_the_client(serving: Callable[..., Running]):
    change = {"type": "update_file", "path": "a.py", "diff": "@@\n-x\n+y\n"}
    server = serving(Script(text="", calls=(("apply_patch", json.dumps(change)),)))
    tools: Any = [{"type": "apply_patch"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(
            model=MODEL, input="Go.", tools=tools, tool_choice={"type": "apply_patch"}
        )
        (call,) = first.output
        assert call.type == "apply_patch_call" and call.operation.model_dump() == change
        server.models.play(Script())
        output: Any = {"type": "apply_patch_call_output", "call_id": call.call_id, "status": "completed"}
        client.responses.create(model=MODEL, tools=tools, previous_response_id=first.id, input=[output])
    assert jobs(server)[0].messages[-1].content == "The change was completed."


@confined
def test_containers_end_with_the_server(tmp_path: Path):
    running = start(tmp_path, turns(python("x = 1")), tools=("code_interpreter",))
    try:
        body = {"model": MODEL, "input": "x", "tools": [CODE]}
        assert running.client.post("/v1/responses", json=body).status_code == 200
        assert any((tmp_path / "tools" / "containers").iterdir())
    finally:
        running.end()
    assert not list((tmp_path / "tools" / "containers").iterdir())
