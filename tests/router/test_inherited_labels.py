"""A chat that continues a labelled response has its labels, whatever the request that continues it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.router.house import House, open_house
from tests.router.rented import FakeRented

ROUTES = """
[routes.sealed]
targets = ["own", "box-70b"]
label = "private"
[routes.kept]
targets = ["box-70b"]
cache = "60s"
label = "private"
[routes.afar]
targets = ["big"]
"""


def respond(house: House, model: str, label: str = "", status: int = 200, **fields: Any) -> dict[str, Any]:
    headers = {"X-Freehold-Label": label} if label else {}
    answer = house.client.post("/v1/responses", json={"model": model, **fields}, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json() if not fields.get("stream") else {"text": answer.text}


def left(rented: FakeRented) -> list[str]:
    return [name for name, _ in rented.asked if name == "big"]


@pytest.mark.parametrize("first", [("own", "private"), ("sealed", ""), ("kept", "")], ids=lambda f: f[0])
def test_a_continued_response_brings_its_labels(tmp_path: Path, first: tuple[str, str]):
    rented = FakeRented()
    house = open_house(tmp_path, ROUTES, rented=rented)
    try:
        answer: dict[str, Any] = {}
        for _ in range(2):  # the second answer of a route that keeps them is a kept one
            answer = respond(house, *first, input="mark kq0 is ill")
            refused = respond(house, "afar", status=403, input="go on", previous_response_id=answer["id"])
            assert "label private does not allow" in refused["error"]["message"]
            by_id = [{"type": "item_reference", "id": answer["output"][0]["id"]}]
            respond(house, "afar", status=403, input=[*by_id, {"role": "user", "content": "go on"}])
        then = respond(house, "own", input="go on", previous_response_id=answer["id"])
        respond(house, "big", status=403, input="and now?", previous_response_id=then["id"])
        assert left(rented) == []
    finally:
        house.end()


def test_a_streamed_response_brings_its_labels_too(tmp_path: Path):
    rented = FakeRented()
    house = open_house(tmp_path, ROUTES, rented=rented)
    try:
        streamed = respond(house, "own", "private", input="kq0", stream=True)
        id = streamed["text"].partition('"id":"')[2].partition('"')[0]
        respond(house, "afar", status=403, input="go on", previous_response_id=id)
        open = respond(house, "own", input="hello")
        respond(house, "afar", input="go on", previous_response_id=open["id"])
        assert left(rented) == ["big"]
    finally:
        house.end()


def test_an_item_that_is_repeated_with_its_id_keeps_its_label(tmp_path: Path):
    rented = FakeRented()
    house = open_house(tmp_path, ROUTES, rented=rented)
    try:
        answer = respond(house, "own", "private", input="mark kq0 is ill")
        repeated = [*answer["output"], {"role": "user", "content": "go on"}]
        refused = respond(house, "afar", status=403, input=repeated)
        assert "label private does not allow" in refused["error"]["message"]
        respond(
            house, "afar", input=[{"type": "message", "role": "user", "content": "hello", "id": "msg_mine"}]
        )
        assert left(rented) == ["big"]
    finally:
        house.end()


@pytest.mark.parametrize("header", ["", ",", ", ,"])
def test_an_empty_label_header_is_refused_as_an_unknown_one_is(header: str, tmp_path: Path):
    house = open_house(tmp_path, ROUTES, rented=FakeRented())
    try:
        refused = house.chat("afar", headers={"X-Freehold-Label": header})
        assert refused.status_code == 400 and "labels here: private" in refused.json()["error"]["message"]
        assert house.chat("afar", headers={"X-Freehold-Label": "private,"}).status_code == 403
    finally:
        house.end()
