"""What the Models page shows, and every question of choosing: answers are those that the command line prints.

Knows who may ask about what; knows no figure. Path: route -> models, choose -> questions.Questions
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qs

import msgspec

from freehold.server.console.questions import Questions
from freehold.server.core.call import HttpCall
from freehold.server.core.keys import Key
from freehold.server.core.problems import Refused, without_paths
from freehold.store.refs import parse_ref

MOST_WORDS = 64
VERBS = ("advise", "fit", "license", "why", "cost")
SCOPED = ("fit", "why")  # verbs that speak of one model, which a scoped key may ask about if it is its own


async def models(call: HttpCall) -> None:
    """List what is in the store and the catalogue's models, each with fit, speed, verdict, quality and origin.

    What is kept is answered at once with `newer`: a newer list is being computed, which `newest` waits for.
    """
    words = words_of(call, ("held", "newest"))
    newest = bool(words.pop("newest", None))

    async def work() -> None:
        held = questions(call)
        text, newer = (
            (await held.ask("models", words), False) if newest else await held.shown("models", words)
        )
        loaded = {each.name for each in call.models.loaded()}
        await call.answer(await asyncio.to_thread(_seen, text, call.key, loaded, newer))

    await call.while_here(work())


async def starters(call: HttpCall) -> None:
    """List the models that a person without any begins with: they run well here, and can be fetched here."""
    words_of(call, ())

    async def work() -> None:
        await call.answer((await questions(call).ask("starters", {})).encode())

    await call.while_here(work())


async def choose(call: HttpCall) -> None:
    """Answer `verb` (advise, fit, license, why, cost) with what `freehold VERB --json` prints, byte for byte."""
    words = words_of(call)
    verb = "".join(words.pop("verb", ()))
    if verb not in VERBS:
        raise Refused(
            400, f"verb is {verb[:40]!r}; expected {', '.join(VERBS)}", param="verb", code="invalid_value"
        )
    for name in words.get("model", ()):
        if not name or parse_ref(name, disk=False).kind == "path":  # a request names no file of the server
            raise Refused(404, f"there is no model {name[:200]!r}", param="model", code="model_not_found")
    if call.key is not None and call.key.models:
        _check_scope(call.key, verb, words)

    async def work() -> None:
        text = await questions(call).ask(verb, words)
        await call.answer((text if _of_the_house(call) else _pathless(text)).encode())

    await call.while_here(work())


def _of_the_house(call: HttpCall) -> bool:
    """Return whether the caller may know the paths of local files."""
    return call.owner or (call.key is not None and call.key.kind == "admin")


def _pathless(text: str) -> str:
    """Leave of each path the file's name, as in errors; the rest as the command line prints it."""

    def told(value: Any) -> Any:
        if isinstance(value, str):
            return without_paths(value)
        if isinstance(value, list):
            return [told(each) for each in value]
        return {name: told(each) for name, each in value.items()} if isinstance(value, dict) else value

    return json.dumps(told(json.loads(text)), indent=1) + "\n"


def _check_scope(key: Key, verb: str, words: dict[str, list[str]]) -> None:
    if verb not in SCOPED:
        raise Refused(
            403, f"the key {key.name} has a scope; {verb[:40]} speaks of every model", code="not_permitted"
        )
    for name in words.get("model", ()):
        if not key.may_use(name):
            raise Refused(
                404, f"there is no model {name[:200]!r} for the key {key.name}", code="model_not_found"
            )


def _seen(text: str, key: Key | None, loaded: Collection[str], newer: bool) -> bytes:
    """Leave the rows that a key may see, and say which are in memory."""
    report: dict[str, Any] = msgspec.json.decode(text)
    rows = [row for row in report["models"] if key is None or key.may_use(row["name"])]
    for row in rows:
        row["loaded"] = row["name"] in loaded
    return msgspec.json.encode({**report, "models": rows, "newer": newer})


def questions(call: HttpCall) -> Questions:
    """Return the server's process for questions, which its first one starts."""
    part = call.server.part(Questions)
    if part is None:
        if call.server.store is None:
            raise Refused(404, "this server has no store of models", code="no_store")
        part = call.server.parts[Questions] = Questions(call.server.store.settings.home)
    return part


def words_of(call: HttpCall, known: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return the query's words; Refused (400) for one that is not `known`."""
    try:
        query = call.scope["query_string"].decode("utf-8")
        words = parse_qs(query, keep_blank_values=True, max_num_fields=MOST_WORDS, errors="strict")
    except ValueError as e:
        raise Refused(400, f"the query is malformed: {str(e)[:100]}", code="invalid_value") from None
    if known is not None and (strange := min(words.keys() - set(known), default="")):
        raise Refused(
            400, f"unknown parameter {strange[:40]!r}; expected {', '.join(known)}", code="invalid_value"
        )
    return words
