"""A real server with a tiny model that sees: restarts, limits of tokens, several clients, logs and metrics."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Drawing

from freehold.run.models.tiny import make
from freehold.run.store import ModelRef
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from tests.http.conftest import Running, start

pytestmark = pytest.mark.heavy
MODEL = "sees"
Serve = Callable[..., Running]


def drawn(seed: int, width: int = 640, height: int = 480) -> dict[str, Any]:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (height // 40, width // 40, 3), np.uint8)
    Drawing.fromarray(noise).resize((width, height)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = {"type": "text", "text": "What is to be seen here?"}
    return {"model": MODEL, "messages": [{"role": "user", "content": [*parts, text]}], "max_tokens": 6,
            "temperature": 0, **more}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pictures may become many tokens: the tiny one's own limit is 16."""
    written = make.write_safetensors(make.config("qwen3_vl"), tmp_path_factory.mktemp("seeing") / "tiny")
    path = written / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"size": {"shortest_edge": 1024, "longest_edge": 700 * 500}}))
    return written


@pytest.fixture
def serve(folder: Path, tmp_path: Path) -> Iterator[Serve]:
    running: list[Running] = []

    def served(**options: Any) -> Running:
        files = tuple(sorted(folder.iterdir()))
        size = sum(file.stat().st_size for file in files)
        ref = ModelRef(MODEL, folder, "safetensors", "d" * 64, size, "user", "", "", files)
        chosen = EngineOptions(threads=1, cache_bytes=8 << 20, **options)

        def engines(_: Any) -> EngineModels:
            from freehold.base.config import Settings
            from freehold.run.store import Store

            return EngineModels(Store(Settings(tmp_path)), chosen, paths={MODEL: ref})

        running.append(start(tmp_path / f"server{len(running)}", around=engines, offline=True))
        return running[-1]

    yield served
    for each in running:
        each.end()


def ask(server: Running, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = server.client.post("/v1/chat/completions", json=body(*parts, **more), timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def metric(server: Running, name: str) -> float:
    text = server.client.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.M))


def cached(answer: dict[str, Any]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_restarted_server_neither_computes_a_picture_again_nor_its_prompt(serve: Serve, tmp_path: Path):
    first = serve(disk=tmp_path / "kv")
    shown, another = drawn(1), drawn(2)
    one = ask(first, shown)
    assert metric(first, "freehold_images_encoded_total") == 1 and cached(one) == 0
    assert (
        metric(first, "freehold_image_cache_bytes") == 300 * 64 * 4 * 4
    )  # tokens, width, deep layers, bytes
    assert ask(first, shown)["choices"] == one["choices"]
    assert metric(first, "freehold_image_cache_hits_total") == 1
    first.end()
    assert [*(tmp_path / "kv" / "pictures").glob("*.features")]
    second = serve(disk=tmp_path / "kv")
    two = ask(second, shown)
    assert two["choices"][0]["message"] == one["choices"][0]["message"]
    assert metric(second, "freehold_images_encoded_total") == 0
    assert metric(second, "freehold_image_disk_hits_total") == 1
    assert cached(two) >= 256 and metric(second, "freehold_disk_cache_tokens_total") >= 256
    three = ask(second, another)  # of the same size: only its own rows may match
    assert cached(three) < 32 and metric(second, "freehold_images_encoded_total") == 1
    assert three["usage"]["prompt_tokens"] == two["usage"]["prompt_tokens"]


def test_a_tenant_finds_nothing_of_another_s_on_the_disk(folder: Path, tmp_path: Path):
    from freehold.base.serving import Job
    from freehold.base.types import Image, Message
    from freehold.run.local import open_served

    files = tuple(sorted(folder.iterdir()))
    ref = ModelRef(MODEL, folder, "safetensors", "d" * 64, 1, "user", "", "", files)
    picture = Image.at(drawn(3)["image_url"]["url"])
    chat = (Message("user", parts=(picture, "x")),)
    for tenants, encoded in ((["a", "b", "a"], 2), (["b", "a", "c"], 1)):
        with open_served(ref, context=512, threads=1, disk=tmp_path / "kv") as llm:
            for tenant in tenants:
                job = llm.start(Job(messages=chat, max_tokens=1, tenant=tenant))
                job.enter()
                while not job.done:
                    llm.pump(0.25)
                    job.take()
            assert llm.stats.images_encoded == encoded


def test_a_budget_makes_every_picture_smaller_and_says_so(serve: Serve):
    server = serve(image_tokens=(16, 100))
    answer = ask(server, drawn(4))
    (warning,) = answer["freehold"]["warnings"]
    assert re.fullmatch(
        r"messages\[0\]\.content\[0\]: its 640 x 480 pixels are seen as \d+ x \d+, (\d+) tokens", warning
    )
    assert int(warning.split()[-2]) <= 100 and answer["usage"]["prompt_tokens"] < 150
    low = ask(server, {**drawn(4), "image_url": {**drawn(4)["image_url"], "detail": "low"}})
    assert low["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]  # low is 256 tokens at most
    data = drawn(4)["image_url"]["url"].partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    turns = body({"type": "image", "source": source})["messages"]
    count = server.client.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": turns})
    assert count.json()["input_tokens"] == answer["usage"]["prompt_tokens"]


def test_pictures_beyond_the_context_are_refused_with_the_budget_that_fits(serve: Serve):
    server = serve(context=512)
    shown = [drawn(i) for i in range(3)]
    refused = server.client.post("/v1/chat/completions", json=body(*shown))
    error = refused.json()["error"]
    assert refused.status_code == 400 and "900 of them for 3 pictures" in error["message"]
    assert metric(server, "freehold_images_encoded_total") == 0  # nothing was computed for it
    most = int(re.search(r"(\d+) tokens each would fit", error["message"])[1])  # type: ignore[index]
    assert 100 < most < 170
    server.end()
    ask(serve(context=512, image_tokens=(1, most)), *shown)


@pytest.mark.parametrize("eyes", ["off", "eager"])
def test_eyes_are_off_or_loaded_at_once(serve: Serve, eyes: str):
    server = serve(eyes=eyes)
    if eyes == "eager":
        assert ask(server, drawn(1))["usage"]["prompt_tokens"] > 300
        return
    refused = server.client.post("/v1/chat/completions", json=body(drawn(1)))
    assert refused.status_code == 400 and "cannot read pictures" in refused.json()["error"]["message"]
    assert ask(server)["usage"]["prompt_tokens"] < 100


def test_a_client_with_many_pictures_holds_up_no_other(serve: Serve):
    server = serve()
    ask(server, drawn(0, 64, 64))  # the tower is loaded
    ended: list[str] = []

    def many() -> None:
        chat = [drawn(100 + i, 448, 448) for i in range(12)]
        for i in range(0, 12, 2):
            server.client.post("/v1/chat/completions", json=body(*chat[i : i + 2], user="many"), timeout=300)
        ended.append("many")

    threads = [threading.Thread(target=many) for _ in range(2)]
    for each in threads:
        each.start()
    for i in range(3):
        ask(server, drawn(200 + i, 96, 96))
        ended.append("one")
    for each in threads:
        each.join()
    assert metric(server, "freehold_images_encoded_total") == 1 + 3 + 12  # equal pictures of both once
    assert metric(server, "freehold_image_cache_hits_total") <= 12


def test_times_of_pictures_are_told_apart(serve: Serve, caplog: pytest.LogCaptureFixture):
    server = serve()
    shown = drawn(5)
    chat = {"role": "user", "content": "What?", "images": [shown["image_url"]["url"].partition(",")[2]]}
    request = {"model": MODEL, "messages": [chat], "stream": False, "options": {"num_predict": 2}}
    with caplog.at_level("INFO"):
        reply = server.client.post("/api/chat", json=request, timeout=120).json()
        later = server.client.post("/api/chat", json=request, timeout=120).json()
        lines: list[str] = []
        for _ in range(400):  # a request is logged once its reply is sent
            lines = [record.getMessage() for record in caplog.records if record.name == "freehold.requests"]
            if len(lines) == 2:
                break
            time.sleep(0.01)
    assert reply["image_decode_duration"] > 0 and reply["image_encode_duration"] > 0
    assert reply["prompt_eval_duration"] > 0
    assert "image_encode_duration" not in later  # it was remembered
    timings = reply["freehold"]["timings"]
    assert timings["encoding_s"] * 1e9 == pytest.approx(reply["image_encode_duration"], rel=1e-3)
    assert re.search(r"decode \d\.\d+ s encode \d+\.\d+ s prefill \d+\.\d+ s", lines[0])
    assert "encode" not in lines[1]


def test_a_stopped_request_s_pictures_are_not_computed(serve: Serve):
    server = serve()
    ask(server, drawn(0, 64, 64))
    shown = [drawn(300 + i, 640, 480) for i in range(1)]
    with server.client.stream("POST", "/v1/chat/completions", json=body(*shown, stream=True)) as answer:
        assert answer.status_code == 200
    ask(server, drawn(6, 64, 64))
    assert metric(server, "freehold_images_encoded_total") in (2, 3)
