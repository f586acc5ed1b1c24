"""Requests over labelled collections, through the gateway's faults: no byte of a private text or its question away.

Every passage and every question has a mark of its own. Stores are labelled as they are made, by a header or by their
key's configuration, and filled while requests come. FREEHOLD_PRIVACY_CASES changes the number of the long run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from freehold.route.router.ledger.rows import audit
from tests.http.test_vector_stores import until_done
from tests.providers.standin import Answer, Fault, Received
from tests.router.private_world import KEYS, MARK, ROUTES, World, drawn_fault, opened_world

CASES = int(os.environ.get("FREEHOLD_PRIVACY_CASES", "2000"))
SHORT = 160
# The key that makes a store, and its labels: `alice` has the label private by the gateway's file.
STORES = (
    ("alice", ""),
    ("bob", "private"),
    ("bob", "private,abroad"),
    ("bob", "eu"),
    ("bob", ""),
    ("bob", "abroad"),
)


class LabelledStore:
    """A vector store that a key made, and the marks of its passages."""

    def __init__(self, world: World, key: str, label: str) -> None:
        self.private, self.marks = label not in ("", "abroad") or key == "alice", set[str]()
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        self.client = httpx2.Client(base_url=world.doors.url, timeout=30, trust_env=False, headers=headers)
        made = {"X-Freehold-Label": label} if label else {}
        body = {"embedding_model": "vectors"}
        self.id = self.client.post("/v1/vector_stores", json=body, headers=made).json()["id"]

    def add(self, mark: str) -> None:
        """Have another text indexed; its embedder may fail."""
        self.marks.add(mark)
        text = f"The printer takes toner {mark} on the second floor.".encode()
        files, form = {"file": (f"{mark}.txt", text)}, {"purpose": "assistants"}
        id = self.client.post("/v1/files", data=form, files=files).json()["id"]
        self.client.post(f"/v1/vector_stores/{self.id}/files", json={"file_id": id})

    def ask(self, draw: random.Random, mark: str, number: int) -> int:
        """Ask about a text, or search for it; return the status, 0 for a stream that broke off."""
        question, headers = f"Which toner {mark}?", {"X-Request-Id": f"case-{number}"}
        path, body = f"/v1/vector_stores/{self.id}/search", dict[str, Any](query=question)
        if draw.random() < 0.8:
            tools = [{"type": "file_search", "vector_store_ids": [self.id]}]
            more = {"stream": draw.random() < 0.5, "store": draw.random() < 0.5}
            path = "/v1/responses"
            body = {"model": draw.choice(ROUTES), "input": question, "tools": tools, **more}
        try:
            return self.client.post(path, json=body, headers=headers).status_code
        except httpx2.HTTPError:
            return 0


@pytest.mark.parametrize(
    "cases", [pytest.param(SHORT, marks=pytest.mark.long), pytest.param(CASES, marks=pytest.mark.big)]
)
def test_no_byte_of_a_labelled_collection_leaves_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: int
):
    draw = random.Random(39)
    with opened_world(tmp_path, monkeypatch) as world:

        def behave(received: Received) -> Answer | Fault:
            waiting = (world.faults.get(mark) for mark in MARK.findall(received.body))
            return next((each.popleft() for each in waiting if each), Answer(("It", " is", " done", ".")))

        for stand in (world.far, world.paris, world.box):
            stand.behave = behave
        stores = [LabelledStore(world, *each) for each in STORES]
        for store in stores:
            for _ in range(4):
                store.add(new_mark(draw))
            until_done(lambda store=store: store.client.get(f"/v1/vector_stores/{store.id}").json())
        questions = asked(world, draw, stores, cases)
        for store in stores:
            until_done(lambda store=store: store.client.get(f"/v1/vector_stores/{store.id}").json())
            store.client.close()
        world.settled()
        far = marks_in(world.far.bytes_received + world.paris.bytes_received)
        box = marks_in(world.box.bytes_received)
        others = world.elsewhere.bytes_received, world.proxy.bytes_received
    private = {mark for store in stores if store.private for mark in store.marks}
    private |= {mark for mark, store, _ in questions if store.private}
    assert not far & private
    assert others == (b"", b"")
    assert not marks_in((tmp_path / "debug.log").read_bytes() + (tmp_path / "ledger.sqlite").read_bytes())
    # No empty claim: private passages were read by the box, and others went away.
    assert len({mark for store in stores if store.private for mark in store.marks} & box) >= 8
    assert {mark for store in stores if not store.private for mark in store.marks} & far
    answers = [status for _, store, status in questions if store.private]
    assert answers.count(200) > len(answers) / 5 and 500 not in answers
    left = audit(tmp_path / "ledger.sqlite", "private", 0, 4e9)
    assert (left.left, left.unknown, left.left_to) == (0, 0, {}) and left.sure == left.rows > 0


def asked(
    world: World, draw: random.Random, stores: Sequence[LabelledStore], cases: int
) -> list[tuple[str, LabelledStore, int]]:
    """Ask everything, several at once; texts are added and the file is read again meanwhile."""
    seeds = [(number, draw.randrange(1 << 30)) for number in range(cases)]

    def one(numbered: tuple[int, int]) -> tuple[str, LabelledStore, int]:
        number, seed = numbered
        own = random.Random(seed)
        mark, store = new_mark(own), own.choice(stores)
        faults = [drawn_fault(own, mark, world.elsewhere.port) for _ in range(own.choice((0, 0, 1, 1, 2, 3)))]
        world.faults[mark.encode()].extend(faults)
        if number % 50 == 25:
            world.reload()
        if number % 20 == 10:
            added = new_mark(own)
            world.faults[added.encode()].extend(faults)
            store.add(added)
        return mark, store, store.ask(own, mark, number)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, seeds))


def new_mark(draw: random.Random) -> str:
    return f"kq{draw.randrange(1 << 48):012x}z"


def marks_in(data: bytes) -> set[str]:
    return {mark.decode() for mark in MARK.findall(data)}
