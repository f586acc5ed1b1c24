"""The server's keys, and what was used of it: tokens, cost and savings by key, model and day.

Usage comes from the gateway's ledger and the keys' accounts.

Sums are those of `freehold ledger --json`, savings those of `freehold cost --from-ledger --json`. Where there is no
ledger, or no key, there is null, not zero; without a ledger the receipts of the caller's chats are summed. Knows who
may see whose; knows no price.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta, Struct

from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatCard, SavedMessage
from freehold.serve.http.console.chats import folder_of
from freehold.serve.http.console.choose import Questions, questions, words_of
from freehold.serve.http.console.login import NO_STORE
from freehold.serve.http.core.call import HttpCall, Server
from freehold.serve.http.core.keys import Key, made, new_secret
from freehold.serve.http.core.problems import Refused, problem

MOST_DAYS = 3660
DAY_S = 86400.0


# The JSON that the page gets; tools/console_types.py writes its types in TypeScript.


class SpanSum(TypedDict):
    """What `freehold ledger --json` sums, of a model, a key or a day; money in nano-dollars."""

    model: NotRequired[str]
    key: NotRequired[str]
    day: NotRequired[str]
    rows: int
    whole: int
    nano: int
    estimated: int
    prompt: int
    cached: int
    written: int
    completion: int
    thought: int
    first_s: float
    whole_s: float
    sound_ms: int


class LedgerSums(TypedDict):
    """What `freehold ledger --by model --json` (key, day) prints."""

    since: float
    until: float
    total: SpanSum
    by_model: list[SpanSum]
    by_key: list[SpanSum]
    by_day: list[SpanSum]


class ChatSum(TypedDict):
    """What answers of chats took."""

    answers: int
    prompt: int
    completion: int
    seconds: float


class ModelChatSum(ChatSum):
    """Of one model."""

    model: str


class DayChatSum(ChatSum):
    """Of one day."""

    day: str


class ChatSums(TypedDict):
    """What the answers of the caller's chats took, from their receipts."""

    total: ChatSum
    by_model: list[ModelChatSum]
    by_day: list[DayChatSum]


class AccountDay(TypedDict):
    """Tokens of a key on a day, from the keys' accounts."""

    day: str
    key: str
    tokens: int


class SavingsError(TypedDict):
    """Why there are no savings."""

    message: str
    hint: str


class OwnModel(TypedDict):
    """How far a route is from renting answers to owning the model that gives them (`freehold graduate`)."""

    route: str
    student: str
    teacher: str
    stage: Literal["rented", "teaching", "measured", "owned"]
    running: bool  # it is being taught now
    texts: int  # kept texts of the route
    at: int  # examples from which it is taught
    bar: float
    low: float | None  # lower bound of the student's score; null: it was not measured
    message: str  # the proposal, or why it is where it is


class UsageFacts(TypedDict):
    """What was used."""

    days: int
    ledger: LedgerSums | None  # null: there is no ledger
    chats: ChatSums | None  # null where there is a ledger
    accounts: list[AccountDay] | None  # null: this server has no keys
    savings: dict[str, Any] | None  # `cost --from-ledger --json`; null: no ledger, or a client key asks
    savings_error: SavingsError | None
    own_models: list[OwnModel]  # of routes with `graduate`; none for a client key


async def usage(call: HttpCall) -> None:
    """Return the usage of the last `days`; a client key gets only its own rows, without savings."""
    words = words_of(call, ("days", "on"))
    text = "".join(words.get("days", ["30"]))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= MOST_DAYS):
        message = f"days is {text[:20]!r}; expected 1 to {MOST_DAYS:,}"
        raise Refused(400, message, param="days", code="invalid_value")
    days = int(text)
    own = call.key.name if call.key is not None and call.key.kind == "client" else None

    async def work() -> None:
        path = await call.in_thread(_ledger, call.server)
        sums = await call.in_thread(_sums, path, days, own) if path else None
        savings, why_not = None, None
        if path is not None and sums is not None and own is None:
            savings, why_not = await _savings(call, path, days, words.get("on", []))
        facts: UsageFacts = {
            "days": days,
            "ledger": sums,
            "chats": None if path else await _of_chats(call, days),
            "accounts": await call.in_thread(_accounts, call.server, days, own),
            "savings": savings,
            "savings_error": why_not,
            "own_models": [] if own is not None else await call.in_thread(_own_models, call.server),
        }
        await call.answer(facts)

    await call.while_here(work())


async def _of_chats(call: HttpCall, days: int) -> ChatSums | None:
    """Sum the receipts of the caller's own chats; None for a server that keeps none."""
    if call.server.home is None:
        return None
    held = call.server.parts.setdefault(ChatUsage, ChatUsage())
    return await call.in_thread(held.sums, folder_of(call), days)


def _ledger(server: Server) -> Path | None:
    """Return the ledger that this server writes, or that its home has from another time; None: there is none."""
    from freehold.route.router.opening import ServedGateway
    from freehold.serve.reports.gateway_file import ledger_file

    if isinstance(server.models, ServedGateway):
        return server.models.ledger.path
    if server.store is None:
        return None
    path = ledger_file(server.store.settings, None)
    return path if path.is_file() else None


def _sums(path: Path, days: int, key: str | None) -> LedgerSums | None:
    from freehold.route.router.ledger.rows import sums_json

    until = time.time()
    since = until - days * DAY_S
    try:
        sums = {by: sums_json(path, since, until, [by], key=key) for by in ("model", "key", "day")}
    except ModelNotFound:  # it was taken away meanwhile
        return None
    by_model, by_key, by_day = (one["sums"] for one in sums.values())
    return {
        "since": since,
        "until": until,
        "total": sums["model"]["total"],
        "by_model": by_model,
        "by_key": by_key,
        "by_day": by_day,
    }


def _accounts(server: Server, days: int, key: str | None) -> list[AccountDay] | None:
    by_day = server.accounts.days(days)
    rows: list[AccountDay] = [
        {"day": day, "key": name, "tokens": tokens}
        for day, spent in by_day.items()
        for name, tokens in spent.items()
        if key is None or name == key
    ]
    return rows if rows or server.guard.keys else None


async def _savings(
    call: HttpCall, path: Path, days: int, on: list[str]
) -> tuple[dict[str, Any] | None, SavingsError | None]:
    """Ask what the same requests would have cost elsewhere; why not, where the ledger's file of models is gone."""
    words = {"days": [str(days)], "ledger": [str(path)], **({"on": on} if on else {})}
    if (gateway := _gateway(call.server)) is not None:
        words["gateway"] = [str(gateway)]
    answers: Questions = questions(call)
    try:
        return msgspec.json.decode(await answers.ask("savings", words)), None
    except FreeholdError as e:
        return None, {"message": problem(e).message, "hint": ""}


def _own_models(server: Server) -> list[OwnModel]:
    """Return how far each route with `graduate` is. A damaged state is a row that says so."""
    from freehold.route.router.opening import ServedGateway

    if not isinstance(models := server.models, ServedGateway) or server.store is None:
        return []
    gateway, bars = models.live.current, models.parts.bars
    names = [name for name, route in gateway.routes.items() if route.graduate]
    if not names or bars is None:
        return []
    from freehold.route.router.graduation import TaughtNow, graduand, kept_count, path_of

    home, now, rows = server.store.settings.home, server.part(TaughtNow), []
    for name in names:
        path = path_of(home, graduand(gateway, name), bars, kept_count(models.ledger.path, name))
        rows.append({**path.as_json(), "running": now is not None and now.route == name})
    return rows


def _gateway(server: Server) -> Path | None:
    from freehold.route.router.opening import ServedGateway

    return server.models.live.path if isinstance(server.models, ServedGateway) else None


# --- what the answers of a caller's chats took, from their receipts ---------------------------------
# For servers without a ledger. Requests of other programs leave no receipt here.

MOST_CHATS = 2000  # that are read, the newest; a chat that did not change is read once
Rows = list["Answered"]


class Answered(Struct):
    """What one answer took, or several of them together."""

    at: float
    model: str
    answers: int
    prompt: int
    completion: int
    seconds: float


class ChatUsage:
    """The receipts of a server's chats, as far as they were read: `server.part(ChatUsage)`."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], tuple[tuple[float, int], Rows]] = {}
        self._lock = threading.Lock()

    def sums(self, folder: ChatFolder, days: int) -> ChatSums:
        """Return sums over the last `days`: in all, by model and by day (UTC). Blocks."""
        since = time.time() - days * 86400.0
        with self._lock:
            cards = [card for card in folder.cards() if card.updated >= since][:MOST_CHATS]
            rows = [row for card in cards for row in self._rows(folder, card) if row.at >= since]
        by_model: dict[str, Answered] = {}
        by_day: dict[str, Answered] = {}
        total = Answered(0.0, "", 0, 0, 0, 0.0)
        for row in rows:
            day = datetime.fromtimestamp(row.at, UTC).date().isoformat()
            for sum in (total, _of(by_model, row.model), _of(by_day, day)):
                sum.answers += 1
                sum.prompt += row.prompt
                sum.completion += row.completion
                sum.seconds += row.seconds
        return {
            "total": _plain(total),
            "by_model": [{"model": name, **_plain(sum)} for name, sum in sorted(by_model.items())],
            "by_day": [{"day": name, **_plain(sum)} for name, sum in sorted(by_day.items())],
        }

    def _rows(self, folder: ChatFolder, card: ChatCard) -> Rows:
        name, stamp = (str(folder.path), card.id), (card.updated, card.messages)
        known = self._read.get(name)
        if known is not None and known[0] == stamp and not card.running:
            return known[1]
        rows: Rows = []
        with suppress(FreeholdError):
            rows = [row for m in folder.read(card.id).messages.values() if (row := _row(m)) is not None]
        self._read[name] = stamp, rows
        return rows


def _row(message: SavedMessage) -> Answered | None:
    """Read a receipt, which in an imported chat may be anything."""
    receipt = message.receipt or {}
    tokens, timings = receipt.get("tokens"), receipt.get("timings")
    if not isinstance(tokens, dict) or not isinstance(timings, dict):
        return None
    prompt, completion, seconds = tokens.get("prompt"), tokens.get("answer"), timings.get("total_s")
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(seconds, int | float)):
        return None
    return Answered(message.at, message.model, 1, prompt, completion, float(seconds))


def _of(sums: dict[str, Answered], name: str) -> Answered:
    return sums.setdefault(name, Answered(0.0, "", 0, 0, 0, 0.0))


def _plain(sum: Answered) -> ChatSum:
    return {
        "answers": sum.answers,
        "prompt": sum.prompt,
        "completion": sum.completion,
        "seconds": round(sum.seconds, 3),
    }


# --- keys of this server: list, make, revoke, as `freehold keys` does and in the same file ----------

Quota = Annotated[str, Meta(max_length=40)]


class KeyRequest(Struct, kw_only=True):
    """A key to make, with the options of `freehold keys add`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    models: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=256)] = []
    rate: Quota = ""
    tokens: Quota = ""
    admin: bool = False


async def keys(call: HttpCall) -> None:
    """List the keys: scope, limits, and tokens used today."""
    spent = call.server.accounts.today()
    rows = [_key_row(key, spent.get(key.name, 0)) for key in call.server.guard.keys.all()]
    await call.answer({"keys": rows}, 200, [NO_STORE])


async def add(call: HttpCall) -> None:
    """Create a key; only this response contains the secret."""
    request, _ = await call.struct(KeyRequest)
    if request.admin and (request.models or request.rate or request.tokens):
        raise Refused(400, "an admin key cannot use models, so it has no models, rate or tokens")
    secret = new_secret()
    key = made(
        request.name,
        secret,
        admin=request.admin,
        models=request.models,
        rate=request.rate,
        tokens=request.tokens,
    )
    await asyncio.to_thread(call.server.guard.keys.add, key)
    await call.answer({**_key_row(key, 0), "key": secret}, 201, [NO_STORE])


async def revoke(call: HttpCall) -> None:
    """Revoke a key: its requests and sessions are rejected from now on; its token counts are kept."""
    name = call.scope["path_params"]["name"]
    if call.server.guard.keys.named(name) is None:
        raise Refused(404, f"there is no key {name[:80]!r}", code="no_key")
    await asyncio.to_thread(call.server.guard.keys.remove, name)
    await call.answer({"name": name}, 200, [NO_STORE])


def _key_row(key: Key, spent: int) -> dict[str, Any]:
    return {
        "name": key.name,
        "kind": key.kind,
        "models": list(key.models),
        "rate": key.rate or None,
        "tokens": key.tokens or None,
        "spent_today": spent,
        "created": key.created,
    }
