"""The console's routes. Knows every handler of the console."""

from __future__ import annotations

from starlette.routing import Route

from freehold.base.types import MEDIA_TYPES
from freehold.serve.chats.types import ChatChange
from freehold.serve.http.console import chats, login, pictures, tools, usage
from freehold.serve.http.console.choose import choose, models, starters
from freehold.serve.http.console.live import live
from freehold.serve.http.console.login import me
from freehold.serve.http.console.runs import handlers as runs
from freehold.serve.http.console.training import compared, training, trainings
from freehold.serve.http.core.call import route


def console_routes() -> list[Route]:
    """Return the routes that the page asks besides those of `/v1` and `/api`."""
    return [
        route("GET", "/console/api/me", me, audience="all"),
        route("POST", "/console/login", login.login, login.LoginRequest, audience="all"),
        route("POST", "/console/owner", login.owner, login.OwnerRequest, audience="all"),
        route("POST", "/console/logout", login.logout, login.NothingAsked, audience="all"),
        route("POST", "/console/api/code", login.code, login.NothingAsked, audience="admin"),
        route("GET", "/console/api/keys", usage.keys, audience="admin"),
        route("POST", "/console/api/keys", usage.add, usage.KeyRequest, audience="admin", status=[201]),
        route("DELETE", "/console/api/keys/{name}", usage.revoke, audience="admin"),
        *fact_routes(),
        *_tools("/console/api/tools"),
        *_chats("/console/api/chats"),
        *_pictures("/console/api/chats/{chat}/pictures"),
        *_runs("/console/api/chats/{chat}", "/console/api/runs/{run}"),
    ]


def _chats(at: str) -> list[Route]:
    one = f"{at}/{{chat}}"
    files = ["application/json", "text/markdown"]
    return [
        route("GET", at, chats.chats, query=["limit", "after", "q"]),
        route("POST", at, chats.begin, chats.NewChat, status=[201]),
        route("GET", one, chats.chat, query=["last"]),
        route("PATCH", one, chats.change, ChatChange),
        route("DELETE", one, chats.delete),
        route("POST", f"{one}/restore", chats.restore, login.NothingAsked),
        route("GET", f"{one}/messages", chats.messages, query=["ids"]),
        route("POST", f"{one}/take-out", chats.take_out, chats.OneMessage),
        route("POST", f"{one}/put-back", chats.put_back, chats.SomeMessages),
        route("POST", f"{one}/answers", chats.edit_answer, chats.EditedAnswer, status=[201]),
        route("POST", f"{one}/fork", chats.fork, chats.OneMessage, status=[201]),
        route("GET", f"{one}/export", chats.export, query=["as"], answer=files),
        route("POST", "/console/api/import", chats.take, chats.ImportedChat, status=[201]),
    ]


def _pictures(at: str) -> list[Route]:
    kinds = [*MEDIA_TYPES, "application/octet-stream"]
    return [
        route("POST", at, pictures.store, pictures.SentPicture, status=[201]),
        route("GET", f"{at}/{{digest}}", pictures.picture, answer=kinds),
        route("POST", "/console/api/pictures/tokens", pictures.tokens, pictures.PictureSizes),
    ]


def _tools(at: str) -> list[Route]:
    return [
        route("GET", at, tools.tools, audience="any"),
        route("POST", f"{at}/{{name}}/try", tools.try_server, login.NothingAsked, audience="any"),
        route("DELETE", f"{at}/permissions/{{digest}}", tools.revoke, audience="any"),
    ]


def _runs(chat: str, run: str) -> list[Route]:
    return [
        route("POST", f"{chat}/runs", runs.start, runs.StartRun, status=[201]),
        route("POST", f"{chat}/again", runs.again, runs.ComputeAgain, status=[201]),
        route("GET", f"{chat}/difference", runs.difference, query=["a", "b"]),
        route("GET", f"{run}/events", runs.events, answer=["text/event-stream"], query=["after"]),
        route("POST", f"{run}/cancel", runs.cancel, login.NothingAsked),
        route("POST", f"{run}/approve", runs.approve, runs.ApproveCall),
    ]


# --- routes of the pages that show facts ------------------------------------------------------------


def fact_routes() -> list[Route]:
    """Return the routes that the pages of models, engine, usage and runs ask."""
    return [
        route("GET", "/console/api/live", live, audience="any", answer=["text/event-stream"]),
        route("GET", "/console/api/models", models, audience="any", query=["held", "newest"]),
        route("GET", "/console/api/starters", starters, audience="any"),
        route(
            "GET",
            "/console/api/choose",
            choose,
            audience="any",
            query=["verb", "model", "name", "task", "on"],
        ),
        route("GET", "/console/api/usage", usage.usage, audience="any", query=["days", "on"]),
        route("GET", "/console/api/training", trainings, audience="operator"),
        route("GET", "/console/api/training/compare", compared, audience="operator", query=["one", "other"]),
        route("GET", "/console/api/training/{id}", training, audience="operator"),
    ]
