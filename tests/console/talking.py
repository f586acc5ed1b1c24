"""A page's half of the console's routes without a page: chats, runs, and events followed from any number on.

Used by tests with a real server and by the programs in benches/console. Path: test_runs.py -> Talker -> httpx2
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

RunEvent = tuple[int, str, dict[str, Any]]  # number, kind, data


@dataclass
class Heard:
    """What was followed of one run so far, as a page keeps it."""

    last: int = 0
    text: str = ""
    seen: list[str] = field(default_factory=list)  # kinds, in order
    data: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def take(self, event: RunEvent) -> None:
        """Add an event; AssertionError for a hole, an overlap or a number that does not grow."""
        number, kind, data = event
        assert number > self.last, f"event {number} after {self.last}"
        self.last = number
        self.seen.append(kind)
        if kind == "text":
            assert data["at"] == len(self.text.encode("utf-16-le")) // 2, (data["at"], len(self.text))
            self.text += data["text"]
        else:
            self.data.setdefault(kind, []).append(data)

    @property
    def end(self) -> dict[str, Any] | None:
        """The `end` event; None before it."""
        return (self.data.get("end") or [None])[0]


class Talker:
    """One client of one server."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=120)

    def json(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        """Ask a route of the console."""
        answer = self.http.request(method, f"/console/api/{path}", json=body)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def chat(self, model: str, **settings: Any) -> str:
        """Make a chat and return its id."""
        body = {"model": model, **({"settings": settings} if settings else {})}
        return self.json("POST", "chats", body, 201)["id"]

    def run(self, chat: str, text: str | None, parent: str | None = None, **body: Any) -> dict[str, Any]:
        """Send a message, or with None have `parent` answered once more."""
        said = {} if text is None else {"message": {"content": text}}
        return self.json("POST", f"chats/{chat}/runs", {"parent": parent, **said, **body}, 201)

    def events(self, run: str, after: int = 0) -> Iterator[RunEvent]:
        """Follow a run after an event."""
        with self.http.stream("GET", f"/console/api/runs/{run}/events", params={"after": after}) as answer:
            assert answer.status_code == 200, answer.read()
            now: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name:
                    now[name] = value
                elif now:
                    yield int(now["id"]), now["event"], json.loads(now["data"])
                    now = {}

    def follow(
        self, run: str, heard: Heard | None = None, until: Callable[[Heard], bool] = lambda _: False
    ) -> Heard:
        """Follow a run to its end, or until `until` says so, from where `heard` is."""
        heard = heard or Heard()
        events = self.events(run, heard.last)
        try:
            for event in events:
                heard.take(event)
                if until(heard):
                    break
        finally:
            events.close()  # type: ignore[attr-defined]
        return heard

    def again(self, chat: str, message: str) -> dict[str, Any]:
        """Compute an answer again and return the verdict."""
        run = self.json("POST", f"chats/{chat}/again", {"message": message}, 201)["run"]
        heard = self.follow(run)
        assert "again" in heard.data, heard.data
        return heard.data["again"][0]

    def message(self, chat: str, id: str) -> dict[str, Any]:
        """Read one message as the chat has it."""
        (message,) = self.json("GET", f"chats/{chat}/messages?ids={id}")["messages"]
        return message
