"""Pictures to a deployed model: passed on within our limits, refused by place beyond them, counted as ours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image as Drawing

from freehold.choose.advisor.anatomy import WeightGroup
from freehold.outgrow.contract import DeployedTower
from freehold.outgrow.planning.eyes import seeing
from freehold.run.models.tiny import make
from tests.http.test_deployed import ASKED, Deploying
from tests.outgrow import engines
from tests.outgrow.engines import expected
from tests.pictures import makers


@pytest.fixture(scope="module")
def deploying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    """A server with a stand-in that sees as `eyes`, and one of text as `m`."""
    folder = tmp_path_factory.mktemp("eyes")
    served = Deploying(folder)
    mmproj = make.write_mmproj(make.config("qwen3_vl"), folder / "mmproj-a.gguf")
    plan = engines.plan(folder, 1)
    tower = DeployedTower(str(mmproj), "qwen3vl", 4, 16)
    model = seeing(replace(plan.model, name="eyes"), tower, [WeightGroup("towers", "F32", 9.0, 36.0, 0.0)])
    served.do(lambda: served.models.add(replace(plan, model=model)))
    served.do(lambda: served.models.add(engines.plan(folder, 1)))
    served.until(served.all_ready)
    yield served
    served.running.end()


def drawn(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Drawing.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def chat(url: str, model: str = "eyes") -> dict[str, Any]:
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}]
    return {**ASKED, "model": model, "messages": [{"role": "user", "content": parts}]}


def coded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_picture_within_the_limits_reaches_the_engine(deploying: Deploying):
    answer = deploying.client.post("/v1/chat/completions", json=chat(coded(drawn(320, 240))))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == expected("hello")
    models = {
        each["name"].partition(":")[0]: each for each in deploying.client.get("/api/tags").json()["models"]
    }
    assert "vision" in models["eyes"]["capabilities"] and "vision" not in models["m"]["capabilities"]


@pytest.mark.parametrize(
    "data, why",
    [
        (makers.png_bomb(30_000, 30_000), "pixels"),
        (b"<svg onload='x'>", "format SVG"),
        (drawn(9, 9)[:20], "PNG"),
    ],
)
def test_what_our_engine_would_refuse_no_engine_gets(deploying: Deploying, data: bytes, why: str):
    before = deploying.models.rows()
    answer = deploying.client.post("/v1/chat/completions", json=chat(coded(data)))
    assert answer.status_code == 400 and why in answer.text
    assert answer.json()["error"]["param"] == "messages[0].content[1]"
    assert [row.requests for row in deploying.models.rows()] == [row.requests for row in before]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.png", "https://169.254.169.254/", "file:///etc/passwd"]
)
def test_no_address_reaches_an_engine(deploying: Deploying, url: str):
    answer = deploying.client.post("/v1/chat/completions", json=chat(url))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].content[1]"


def test_a_deployment_of_text_says_so(deploying: Deploying):
    answer = deploying.client.post("/v1/chat/completions", json=chat(coded(drawn(9, 9)), "m"))
    assert answer.status_code == 400 and "cannot read pictures" in answer.text and "eyes can" in answer.text


def test_tokens_of_pictures_are_counted_by_our_arithmetic(deploying: Deploying):
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(drawn(320, 240)).decode()}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": "hello"}]
    counts = [
        deploying.client.post(
            "/v1/messages/count_tokens",
            json={"model": "eyes", "messages": [{"role": "user", "content": content}]},
        ).json()["input_tokens"]
        for content in ("hello", parts)
    ]
    assert counts[1] - counts[0] == 12
