"""Four real clients, unmodified, through `freehold serve --gateway` and each kind of provider, streamed and whole."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.cli.test_serve import environment, program
from tests.cli.test_serve_gateway import eventually
from tests.providers.standin import StandIn
from tests.providers.standin.script import Answer, Call, Fault, Tokens
from tests.server_clients.talking import PARAMETERS, PNG, TALKS, Said

pytest.importorskip("aiohttp")
# langchain-openai and ollama leave their connections to the collector.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
KEY = "sk-standin-0123456789abcdef"
# kind of provider -> the stand-in's path, and a model's name there
KINDS = {
    "openai": ("openai", "gpt-test"),
    "anthropic": ("anthropic", "claude-haiku-4-5"),
    "gemini": ("gemini", "gemini-3.8-flash"),
    "mistral": ("mistral", "mistral-test"),
    "deepseek": ("deepseek", "deepseek-test"),
    "openai-compatible": ("compatible", "box-test"),
}
SIGNING = ("anthropic", "gemini")
PRICE = "{ input = 2.0, cached = 0.2, output = 8.0 }"
# how an answer ended -> the words of each protocol
ENDS = {
    "stop": {"openai": "stop", "langchain": "stop", "anthropic": "end_turn", "ollama": "stop"},
    "length": {"openai": "length", "langchain": "length", "anthropic": "max_tokens", "ollama": "length"},
    "tool_calls": {"openai": "tool_calls", "langchain": "tool_calls", "anthropic": "tool_use", "ollama": "stop"},
    "content_filter": {
        "openai": "content_filter", "langchain": "content_filter", "anthropic": "refusal", "ollama": "content_filter",
    },
}  # fmt: skip


@dataclass
class Served:
    url: str
    standin: StandIn
    home: Path
    pid: int

    @property
    def log(self) -> str:
        return (self.home / "server.log").read_text()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with a provider of each kind, all of them the stand-in."""
    home = tmp_path_factory.mktemp("gateway")
    (home / "config.toml").write_text("adopt = false\n")
    with StandIn() as standin:
        lines = []
        for kind, (path, model) in KINDS.items():
            lines += [
                f"[providers.far-{kind}]",
                f'kind = "{kind}"',
                f'url = "{standin.url(path)}"',
                'key = "env:SELLER_KEY"',
            ]
            lines += [
                f'[models."{kind}"]',
                f'provider = "far-{kind}"',
                f'model = "{model}"',
                f"price = {PRICE}",
            ]
        lines += ["[labels.private]", 'stay = "owned"']
        (home / "gateway.toml").write_text("\n".join([*lines, ""]))
        command = program(
            "serve", "--port", "0", "--json", "--log-level", "debug", "--gateway", str(home / "gateway.toml")
        )
        env = environment(home) | {"SELLER_KEY": KEY}
        with (
            (home / "server.log").open("w") as log,
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (home / "server.log").read_text()
                yield Served(json.loads(line)["url"], standin, home, process.pid)
            finally:
                process.kill()


@pytest.fixture
def talk(gateway: Served, kind: str, client: str, stream: bool) -> Callable[..., Any]:
    """Return a function that begins a conversation; the stand-in forgets the one before."""
    gateway.standin.say.clear()
    gateway.standin.received.clear()
    if client == "langchain":
        pytest.importorskip("langchain_openai")
    return lambda **fields: TALKS[client](gateway.url, kind, stream=stream, **fields)


every = pytest.mark.parametrize("kind", KINDS)
clients = pytest.mark.parametrize("client", TALKS)
streams = pytest.mark.parametrize("stream", [False, True])


def sent(gateway: Served, number: int = -1) -> dict[str, Any]:
    return json.loads(gateway.standin.received[number].body)


@pytest.mark.heavy
@every
@clients
@streams
def test_text_counts_and_end(gateway: Served, talk, kind: str, client: str, stream: bool):
    gateway.standin.say.append(Answer(("Rome ", "is ", "old."), tokens=Tokens(120, 9, cached=100)))
    said: Said = talk().ask("Where?")
    assert (said.text, said.finish) == ("Rome is old.", ENDS["stop"][client])
    assert (said.prompt, said.made) == (120, 9)
    if client != "ollama":  # which has no word for it
        assert said.cached == 100


@every
@clients
@streams
def test_tools_over_three_turns(gateway: Served, talk, kind: str, client: str, stream: bool):
    calls = [
        Call(f"call0000{i}", "get_weather", json.dumps({"city": city}))
        for i, city in enumerate(("Rome", "Oslo"))
    ]
    for call in calls:
        gateway.standin.say.append(Answer((), calls=(call,), finish="tool_calls"))
    gateway.standin.say.append(Answer(("Rome is warmer.",)))
    conversation = talk(tools=True)
    first: Said = conversation.ask("Rome or Oslo?")
    assert first.calls == [("get_weather", {"city": "Rome"})] and first.finish == ENDS["tool_calls"][client]
    assert conversation.results("18 C").calls == [("get_weather", {"city": "Oslo"})]
    last: Said = conversation.results("9 C")
    assert (last.text, last.finish) == ("Rome is warmer.", ENDS["stop"][client])
    assert all(part in gateway.standin.received[-1].body for part in (b"18 C", b"9 C", b"Rome", b"Oslo"))


@pytest.mark.parametrize("kind", SIGNING)
@pytest.mark.parametrize("client", ["openai", "anthropic", "langchain", "ollama"])
@streams
def test_thinking_and_tools_over_two_turns_with_signatures(
    gateway: Served, talk, kind: str, client: str, stream: bool
):
    call = Call("toolu_1", "get_weather", '{"city": "Rome"}')
    gateway.standin.say.append(
        Answer(("I look. ",), thinking=("Let me", " see."), calls=(call,), finish="tool_calls")
    )
    gateway.standin.say.append(Answer(("18 C.",)))
    conversation = talk(tools=True, thinking=True)
    assert conversation.ask("Rome?").calls == [("get_weather", {"city": "Rome"})]
    # The stand-in refuses a turn whose reasoning came back without its signature, or changed.
    assert conversation.results("18 C").text == "18 C."


@every
@clients
@streams
@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_cut_and_filtered_answers(gateway: Served, talk, kind: str, client: str, stream: bool, finish: Any):
    if finish == "content_filter" and kind in ("mistral", "openai-compatible"):
        pytest.skip("has no filter")
    gateway.standin.say.append(Answer(("Rome",), finish=finish))
    said: Said = talk().ask("Where?")
    word = ENDS[finish][client]
    if finish == "content_filter" and (kind, client) == ("anthropic", "ollama"):
        word = "refusal"  # the provider has no other word for what its filter ends
    assert (said.text, said.finish) == ("Rome", word)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@clients
@streams
def test_refusals(gateway: Served, talk, kind: str, client: str, stream: bool):
    refusal = "I cannot." if kind == "openai" else ""
    gateway.standin.say.append(Answer(() if refusal else ("No.",), finish="refusal", refusal=refusal))
    said: Said = talk().ask("How?")
    if client in ("anthropic", "ollama"):
        assert said.finish == "refusal"
        assert said.text == (refusal or "No.")
    elif refusal:
        # langchain-openai drops the refusal of a stream
        told = "" if client == "langchain" and stream else "I cannot."
        assert (said.refusal, said.finish) == (told, "stop")
    else:
        assert said.finish == "content_filter"


@pytest.mark.parametrize("kind", ["anthropic", "openai-compatible"])
@streams
@pytest.mark.parametrize("client", ["anthropic"])
def test_a_stop_sequence(gateway: Served, talk, kind: str, client: str, stream: bool):
    gateway.standin.say.append(Answer(("Rome",), stop="END"))
    said: Said = talk().ask("Where?", stop_sequences=["END"])
    assert said.text == "Rome" and said.finish == ("stop_sequence" if kind == "anthropic" else "end_turn")
    assert b"END" in gateway.standin.received[-1].body


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini", "openai-compatible"])
@clients
@streams
def test_a_picture_arrives(gateway: Served, talk, kind: str, client: str, stream: bool):
    gateway.standin.say.append(Answer(("A dot.",)))
    assert talk().ask("What is it?", image=True).text == "A dot."
    assert PNG.encode() in gateway.standin.received[-1].body


@pytest.mark.parametrize("kind", SIGNING)
@streams
def test_responses_carry_signed_reasoning_over_two_turns(gateway: Served, kind: str, stream: bool):
    gateway.standin.say.clear()
    call = Call("toolu_1", "get_weather", '{"city": "Rome"}')
    gateway.standin.say.append(Answer((), thinking=("Let me", " see."), calls=(call,), finish="tool_calls"))
    gateway.standin.say.append(Answer(("18 C.",)))
    tool: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}
    asked: dict[str, Any] = {"model": kind, "tools": [tool], "store": False, "reasoning": {"effort": "low"}}
    history: list[Any] = [{"role": "user", "content": "Rome?"}]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        first = _response(client, stream, input=history, **asked)
        (use,) = [item for item in first.output if item.type == "function_call"]
        result = {"type": "function_call_output", "call_id": use.call_id, "output": "18 C"}
        history += [*(item.to_dict() for item in first.output), result]
        assert _response(client, stream, input=history, **asked).output_text == "18 C."
    reasoning = [item for item in first.output if item.type == "reasoning"]
    assert kind != "anthropic" or reasoning[0].encrypted_content


def _response(client: openai.OpenAI, stream: bool, **asked: Any) -> Any:
    if not stream:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as events:
        return events.get_final_response()


@every
def test_a_prompt_is_counted_by_its_provider_or_estimated(gateway: Served, kind: str):
    gateway.standin.say.clear()
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        chat: Any = [{"role": "user", "content": "How many tokens has this?"}]
        raw = client.messages.with_raw_response.count_tokens(model=kind, messages=chat)
    body = json.loads(raw.text())
    assert body["input_tokens"] > 0
    assert any("estimated" in w for w in body["freehold"]["warnings"]) == (kind not in SIGNING)


@pytest.mark.parametrize("kind", ["openai", "mistral", "openai-compatible", "gemini"])
def test_embeddings(gateway: Served, kind: str):
    gateway.standin.say.clear()
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model=kind, input=["a", "b"])
    assert [len(row.embedding) > 0 for row in found.data] == [True, True]


def test_a_batch_is_answered_by_a_rented_model(gateway: Served):
    gateway.standin.say.clear()
    lines = [
        {"custom_id": f"l{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "openai", "messages": [{"role": "user", "content": "Hi"}]}}
        for i in range(3)
    ]  # fmt: skip
    data = "\n".join(map(json.dumps, lines)).encode()
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(file=("lines.jsonl", data), purpose="batch")
        asked: Any = {"input_file_id": file.id, "completion_window": "24h"}
        for labels, done in (("", 3), ("private", 0)):
            header = {"X-Freehold-Label": labels} if labels else {}
            made = client.batches.create(**asked, endpoint="/v1/chat/completions", extra_headers=header)
            before = len(gateway.standin.received)
            eventually(lambda id=made.id: client.batches.retrieve(id).status == "completed")
            counts = client.batches.retrieve(made.id).request_counts
            assert counts is not None and (counts.completed, counts.failed) == (done, 3 - done)
            assert len(gateway.standin.received) - before <= done
    with sqlite3.connect(gateway.home / "ledger.sqlite") as db:
        doors = dict(db.execute("SELECT door, count(*) FROM requests GROUP BY door").fetchall())
    assert doors["batch"] >= 3


@pytest.mark.parametrize("stream", [False])
@pytest.mark.parametrize("client", ["openai"])
@every
def test_no_key_of_a_provider_is_told(gateway: Served, talk, kind: str, client: str, stream: bool):
    quoting = f"Incorrect API key provided: {KEY}. You can find your key elsewhere."
    gateway.standin.say.append(Fault("status", status=401, message=quoting))
    asked = {"model": kind, "messages": [{"role": "user", "content": "Hi"}]}
    answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=asked, timeout=20)
    assert answer.status_code == 502 and "gateway's own key" in answer.text
    shown = [answer.text, gateway.log]
    shown += [
        httpx2.get(f"{gateway.url}{path}").text
        for path in ("/metrics", "/openapi.json", "/health", "/v1/models")
    ]
    shown += [path.read_bytes().decode("latin-1") for path in gateway.home.glob("ledger.sqlite*")]
    shown.append(Path(f"/proc/{gateway.pid}/environ").read_bytes().decode("latin-1"))
    assert not [text for text in shown if KEY in text]
