"""What the hostile client of hostile.py asks: cases from the application's routes, and bodies from their structs.

A body begins as the least that its struct takes, by PLAIN where a route means more than its types say; each way then
makes it as bad as its limits allow. Knows routes, structs and bytes; measures nothing.
Path: hostile.py -> cases -> made -> requests as bytes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from benches.lib.watch import asked
from benches.server.attack import request

BODY = (16 << 20) - (1 << 16)  # bytes; the server takes 16 MB
CONTAINERS, NAMES, VALUES = 65_000, 130_000, 1_040_000  # just within the limits of a body
DEPTH = 60
LEAVING = 3 << 20
OPENED = ("client", "any", "all", "page")  # audiences of routes that a client's key opens
CHAT = [{"role": "user", "content": "hi"}]
_TEXT = {"text_1": "a", "text_2": ["b"]}
_DOCUMENTS = {"query": "a", "documents": ["b"]}
# Path -> a small request that the route computes; others have the least that their struct takes.
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/embeddings": {"input": ["hi"]},
    "/v1/rerank": _DOCUMENTS,
    "/v2/rerank": _DOCUMENTS,
    "/rerank": _DOCUMENTS,
    "/v1/score": _TEXT,
    "/score": _TEXT,
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
    "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": CHAT},
    "/api/chat": {"messages": CHAT, "options": {"num_predict": 2}},
    "/api/generate": {"prompt": "hi", "options": {"num_predict": 2}},
    "/api/embed": {"input": ["hi"]},
    "/api/embeddings": {"prompt": "hi"},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A route, and the way in which it is asked."""

    method: str
    path: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path} {self.way}"


def cases() -> list[Case]:
    """List every route with each way that fits it."""
    from freehold.serve.http.app import routes
    from freehold.serve.http.core.call import endpoint_of

    found = []
    for route in routes():
        endpoint = endpoint_of(route)
        for method in sorted((route.methods or set()) - {"HEAD"} or {"HEAD"}):
            ways = ["many"]
            if endpoint.audience in OPENED:
                ways += ["slow", "leaving"] if method == "GET" else []
                ways += [*BODIES, "leaving", "slow"] if endpoint.request else []
                ways += ["form"] if endpoint.form else []
                ways += ["query"] if endpoint.query else []
                ways += [f"seed {name}" for name in SEEDS.get(route.path, {}) if method == "POST"]
            found += [Case(method, route.path, way) for way in dict.fromkeys(ways)]
    return found


def made(case: Case, model: str, ids: dict[str, list[str]]) -> list[bytes]:
    """Return the requests of a case; `ids`: what is stored, by the route's first words."""
    paths = [_filled(case.path, id) for id in _stored_for(case.path, ids)]
    if case.way == "query":
        paths = [f"{path}?limit=100&order=asc&model={model}&q=a&last=100&days=90" for path in paths]
    if case.way == "form":
        return [_form(BODY), _form(100)]
    kind = _struct(case)
    if kind is None:
        return [_closing(request(case.method, path, b"", "mallory")) for path in paths]
    base = {"model": model} if "model" in kind.__struct_fields__ else {}
    plain = {**least(kind), **PLAIN.get(case.path, {}), **base}
    if case.way.startswith("seed "):
        bodies = [plain | each for each in SEEDS[case.path][case.way[5:]](ids)]
    elif case.way == "leaving":
        bodies = [plain | each for each in _long(kind, LEAVING)] or [plain]
    elif case.way in BODIES:
        bodies = [plain | each for each in BODIES[case.way](kind)]
    else:
        bodies = [plain]
    encoded = [msgspec.json.encode(body) for body in bodies]
    return [_closing(request(case.method, path, body, "mallory")) for path in paths for body in encoded]


def _struct(case: Case) -> type[msgspec.Struct] | None:
    from freehold.serve.http.app import routes
    from freehold.serve.http.core.call import endpoint_of

    return next(
        endpoint_of(r).request for r in routes() if r.path == case.path and case.method in (r.methods or ())
    )


def _closing(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _filled(path: str, id: str) -> str:
    head, brace, rest = path.partition("{")
    return head + id + rest.partition("}")[2] if brace else path


def _stored_for(path: str, ids: dict[str, list[str]]) -> list[str]:
    return next((found for start, found in ids.items() if path.startswith(start + "/{")), None) or ["none"]


def _form(size: int) -> bytes:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n',
        b"{}\n" * (size // 3),
        b"\r\n--x--\r\n",
    ]
    kind = b"Content-Type: application/json"
    data = request("POST", "/v1/files", b"".join(parts), "mallory")
    return _closing(data.replace(kind, b"Content-Type: multipart/form-data; boundary=x", 1))


# --- bodies by the struct's types --------------------------------------------------------------------------


def least(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the least object that a struct takes."""
    return _least(inspect.type_info(kind))


def _least(t: Any) -> Any:
    match t:
        case inspect.StructType():
            return {f.encode_name: _least(f.type) for f in t.fields if f.required}
        case inspect.Metadata():
            return _least(t.type)
        case inspect.UnionType():
            return _least(t.types[0])
        case inspect.LiteralType():
            return t.values[-1]
        case inspect.ListType() | inspect.VarTupleType():
            return [_least(t.item_type)] * (t.min_length or 0)
        case inspect.DictType():
            return {}
        case inspect.StrType():
            return "a"
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return t.ge if t.ge is not None else 1
        case inspect.AnyType():
            return {"type": "message", "role": "user", "content": "a"}
    return None


def _kinds(t: Any) -> Iterator[Any]:
    """Give the alternatives of a type."""
    if isinstance(t, inspect.Metadata):
        yield from _kinds(t.type)
    elif isinstance(t, inspect.UnionType):
        for each in t.types:
            yield from _kinds(each)
    else:
        yield t


def _fields(kind: type[msgspec.Struct], sort: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Give (name, type) of the fields that may be of a sort."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for each in info.fields:
        for t in _kinds(each.type):
            if isinstance(t, sort):
                yield each.encode_name, t


def _nested(levels: int) -> Any:
    value: Any = []
    for i in range(levels):
        value = [value] if i % 2 else {"a": value}
    return value


def _deep(kind: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """Nest to the limit, in an unknown field and wherever anything is taken."""
    yield {"zzz": [_nested(DEPTH - 2)] * (CONTAINERS // DEPTH)}
    for name, _ in _fields(kind, (inspect.DictType, inspect.AnyType)):
        yield {name: {f"k{i}": _nested(DEPTH - 2) for i in range(CONTAINERS // DEPTH)}}
    for name, t in _fields(kind, inspect.ListType):
        if any(isinstance(each, inspect.AnyType | inspect.DictType) for each in _kinds(t.item_type)):
            yield {name: [_nested(DEPTH - 3)] * (CONTAINERS // DEPTH)}


def _wide(kind: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """Fill each list, and each object, as far as a body may."""
    for name, t in _fields(kind, inspect.ListType):
        for item in _kinds(t.item_type):
            value = _item(item)
            most = t.max_length or (CONTAINERS if isinstance(value, dict | list) else 200_000)
            yield {name: [value] * min(most, CONTAINERS if isinstance(value, dict | list) else most)}
    for name, _ in _fields(kind, inspect.DictType):
        yield {name: {f"{i}": 1 for i in range(NAMES)}}


def _item(t: Any) -> Any:
    """Return an item that is as full of things as one of its type easily is."""
    value = _least(t)
    if isinstance(value, dict) and value.get("role") and "content" not in value:
        value = {**value, "role": "user", "content": "a"}
    return value


def _names(kind: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """Give unknown fields: as many as there may be, as many as are refused, and within every item."""
    yield {f"unknown{i}": 1 for i in range(NAMES)}
    yield {f"{i}" + "n" * 200_000: 1 for i in range(60)}
    for name, t in _fields(kind, inspect.ListType):
        item = _item(next(_kinds(t.item_type)))
        if isinstance(item, dict):
            few = [{**item, **{f"{i}.{k}": 1 for k in range(40)}} for i in range(NAMES // 45)]
            yield {name: few[: t.max_length or len(few)]}


def _values(_: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """Hold as many values as a body may."""
    yield {"zzz": [f"{i}" for i in range(VALUES)]}
    yield {"zzz": [i + 0.5 for i in range(VALUES)]}


def _long(kind: type[msgspec.Struct], size: int = BODY) -> Iterator[dict[str, Any]]:
    """Give each text a length at which the body is at its limit: words, and escapes alone."""
    for name, _ in _fields(kind, inspect.StrType):
        if name not in ("model", "user"):
            yield {name: "word " * (size // 5)}
            yield {name: "\n" * (size // 2)}


def _limits(kind: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """Put every list exactly at its limit at once, their texts as long as the body allows."""
    full = {}
    for name, t in _fields(kind, inspect.ListType):
        if t.max_length:
            full[name] = [_item(next(_kinds(t.item_type)))] * min(t.max_length, 20_000)
    yield full
    for name, t in _fields(kind, inspect.ListType):
        if any(isinstance(each, inspect.StrType) for each in _kinds(t.item_type)):
            yield {name: [f"text {i} " * 20 for i in range(min(t.max_length or 2048, 2048))]}
        if any(isinstance(each, inspect.IntType) for each in _kinds(t.item_type)):
            yield {name: list(range(min(t.max_length or VALUES, VALUES)))}


BODIES: dict[str, Callable[[type[msgspec.Struct]], Iterator[dict[str, Any]]]] = {
    "deep": _deep,
    "wide": _wide,
    "names": _names,
    "values": _values,
    "long": _long,
    "limits": _limits,
}
WAYS = (*BODIES, "many", "slow", "leaving", "form", "query", "seed")


# --- what is known to hurt ---------------------------------------------------------------------------------

Seed = Callable[[dict[str, list[str]]], list[dict[str, Any]]]


def _ollama_calls(_: object) -> list[dict[str, Any]]:
    """Nine turns of 128 calls, and results without an id for a name that none has."""
    call = {"function": {"name": "n" * 256, "arguments": {}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call] * 128}] * 9
    results = [{"role": "tool", "content": "x", "tool_name": "m" * 250}] * 9_990
    return [{"messages": [*turns, *results]}]


def _calls(_: object) -> list[dict[str, Any]]:
    """Calls alone, each of which joins the turn before it."""
    items = [
        {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"} for i in range(9_999)
    ]
    return [{"input": [*items, {"type": "message", "role": "user", "content": "hi"}]}]


def _continued(ids: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [{"previous_response_id": id} for id in ids.get("/v1/responses", [])]


def _referred(ids: dict[str, list[str]]) -> list[dict[str, Any]]:
    items = ids.get("items") or ["none"]
    return [{"input": [{"type": "item_reference", "id": items[i % len(items)]} for i in range(1000)]}]


def _tool_turns(_: object) -> list[dict[str, Any]]:
    """Turns of 300 calls and their 300 results."""
    turns: list[dict[str, Any]] = []
    for turn in range(30):
        ids = [f"t{turn}_{i}" for i in range(300)]
        calls = [{"type": "tool_use", "id": id, "name": "f", "input": {}} for id in ids]
        done = [{"type": "tool_result", "tool_use_id": id, "content": "x"} for id in ids]
        turns += [{"role": "assistant", "content": calls}, {"role": "user", "content": done}]
    return [{"messages": [{"role": "user", "content": "hi"}, *turns]}]


def _blocks(_: object) -> list[dict[str, Any]]:
    turn = {"role": "user", "content": [{"type": "text", "text": "a"}] * 4_000}
    return [{"messages": [turn] * 15}]


def _choices(_: object) -> list[dict[str, Any]]:
    return [{"guided_choice": [f"choice {i}" for i in range(30_000)]}]


def _chat_calls(_: object) -> list[dict[str, Any]]:
    """One turn of 128 calls and results in reverse, many times."""
    turns: list[dict[str, Any]] = []
    for turn in range(38):
        ids = [f"t{turn}_{i}" for i in range(128)]
        calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
        turns.append({"role": "assistant", "content": None, "tool_calls": calls})
        turns += [{"role": "tool", "tool_call_id": id, "content": "x"} for id in reversed(ids)]
    return [{"messages": [*CHAT, *turns, *CHAT]}]


def _scores(_: object) -> list[dict[str, Any]]:
    return [{"max_tokens": 200, "n": 64, "logprobs": True, "top_logprobs": 20}]


def _text_scores(_: object) -> list[dict[str, Any]]:
    return [{"prompt": ["a b c " * 20] * 8, "n": 8, "max_tokens": 200, "logprobs": 20, "echo": True}]


def _parts(_: object) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": ""}] * 1000
    return [{"messages": [{"role": "user", "content": parts}] * 60}]


def _texts(count: int) -> Seed:
    return lambda _: [{"input": [f"text {i}" for i in range(count)]}]


SEEDS: dict[str, dict[str, Seed]] = {
    "/v1/chat/completions": {
        "parts": _parts,
        "calls": _chat_calls,
        "choices": _choices,
        "scores": _scores,
    },
    "/v1/completions": {"choices": _choices, "scores": _text_scores},
    "/v1/responses": {"calls": _calls, "continued": _continued, "referred": _referred},
    "/v1/messages": {"calls": _tool_turns, "blocks": _blocks},
    "/v1/messages/count_tokens": {"calls": _tool_turns, "blocks": _blocks},
    "/v1/embeddings": {
        "texts": _texts(2048),
        "base64": lambda _: [{**_texts(2048)(_)[0], "encoding_format": "base64"}],
    },
    "/api/embed": {"texts": _texts(2048)},
    "/v1/rerank": {"texts": lambda _: [{"documents": [f"text {i}" for i in range(2047)]}]},
    "/tokenize": {"texts": lambda _: [{"prompt": "a b c d " * 50_000, "return_token_strs": True}]},
    "/detokenize": {"ids": lambda _: [{"tokens": [5] * 200_000}]},
    "/api/chat": {"calls": _ollama_calls},
    "/v1/batches": {
        "create": lambda ids: [{**_BATCH, "endpoint": e, "input_file_id": i} for e, i in _inputs(ids)]
    },
}
_BATCH = {"completion_window": "24h"}


def _inputs(ids: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [tuple(each.split(" ")) for each in ids.get("inputs", [])] or [("/v1/embeddings", "none")]  # type: ignore[misc]


async def stored(port: int, model: str) -> dict[str, list[str]]:
    """Store what other cases refer to, as mallory: chained responses, files, chats; return ids by the route's start."""
    parts = [{"type": "input_text", "text": ""}] * 1000
    message = {"type": "message", "role": "user", "content": parts}
    responses: list[str] = []
    items: list[str] = []
    for _ in range(13):
        body: dict[str, Any] = {"model": model, "input": [message] * 63, "max_output_tokens": 1}
        body |= {"previous_response_id": responses[-1]} if responses else {}
        made = await _post(port, "/v1/responses", body)
        if "id" not in made:
            break
        responses.append(made["id"])
        items += [item["id"] for item in made["output"]]
    inputs = []
    for url, body in (
        ("/v1/embeddings", {"model": model, "input": ["a"] * 2048}),
        ("/v1/responses", {"model": model, "input": "hi", "max_output_tokens": 2}),
    ):
        count = 4 if url == "/v1/embeddings" else 40
        lines = [{"custom_id": f"{i}", "method": "POST", "url": url, "body": body} for i in range(count)]
        data = _upload(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        inputs.append(f"{url} {json.loads((await asked(port, data))[1])['id']}")
    chat = await _post(port, "/console/api/chats", {})
    return {
        "/v1/responses": responses[-1:] or ["none"],
        "/v1/files": [inputs[0].split(" ")[1]],
        "/console/api/chats": [str(chat.get("id", "none"))],
        "items": items,
        "inputs": inputs,
    }


def _upload(data: bytes) -> bytes:
    form = _form(0).replace(b"\r\nConnection: close", b"", 1)
    head, _, body = form.partition(b"\r\n\r\n")
    whole = body.replace(b'filename="f"\r\n\r\n', b'filename="f"\r\n\r\n' + data, 1)
    lines = [b"Content-Length: %d" % len(whole) if b"ontent-Length" in x else x for x in head.split(b"\r\n")]
    return b"\r\n".join(lines) + b"\r\n\r\n" + whole


async def _post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return json.loads((await asked(port, request("POST", path, json.dumps(body).encode(), "mallory")))[1])
