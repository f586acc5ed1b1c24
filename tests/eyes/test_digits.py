"""A small text model reads digits that Pillow drew, through Python, HTTP and `freehold run`.

The tower is made here (digits.py); what it proves is the way of a picture, not how well published models see.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

import freehold
from benches.server.own_server import names_of
from benches.server.servers import KINDS, Server, free_port
from freehold import Image, Message
from freehold.cli import main
from tests.eyes import digits

pytestmark = [pytest.mark.model, pytest.mark.heavy]
UNSEEN = 200
RIGHT = 0.95
SECOND = 0.85  # of second pictures: a model of 135 million parameters repeats its first answer now and then
ANSWER = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.make_seeing(model_path("smollm2-135m"), tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def unseen() -> tuple[list[bytes], list[int]]:
    """Pictures that no matrix was fitted to, and their digits."""
    images, drawn = digits.pictures(2, UNSEEN)
    return [digits.png(image) for image in images], drawn.tolist()


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "freehold.cli.main",
        "serve",
        str(model),
        "--port",
        str(port),
        "--context",
        "512",
    ]
    with Server(command, port, {}, KINDS["freehold"].health) as running:
        yield running


def share(answers: Sequence[str], drawn: Sequence[int]) -> float:
    """Return how many answers name the digit and no other."""
    named = [[c for c in answer if c.isdigit()] for answer in answers]
    return sum(each == [str(digit)] for each, digit in zip(named, drawn, strict=True)) / len(drawn)


def test_python_reads_digits(model: Path, unseen: tuple[list[bytes], list[int]]):
    files, drawn = unseen
    with freehold.load(model, context=512) as llm:
        assert llm.can_see and any("no place for pictures" in note for note in llm.notes)
        chats = [[Message("user", parts=(Image.of(file), digits.QUESTION))] for file in files]
        answers = [llm.chat(chat, **ANSWER) for chat in chats]
        assert share([answer.text for answer in answers], drawn) >= RIGHT
        # Nothing is computed of a picture again, and its tokens are counted as they are used.
        encoded = llm._eyes.counts["images_encoded"]
        assert (
            llm.chat(chats[0], **ANSWER).text == answers[0].text
            and llm._eyes.counts["images_encoded"] == encoded
        )
        (mark,) = llm.tokenize(digits.MARK, special=True)
        assert llm.render(chats[0]).count(mark) == 1
        assert llm.count_tokens(chats[0]) == answers[0].usage.prompt_tokens


def test_two_pictures_are_told_apart(model: Path, unseen: tuple[list[bytes], list[int]]):
    """In a second turn the model reads the second picture; the first stays in the chat."""
    files, drawn = unseen
    with freehold.load(model, context=512) as llm:
        answers, pairs = [], [(i, i + 1) for i in range(0, 60, 2) if drawn[i] != drawn[i + 1]]
        for first, second in pairs:
            chat = [Message("user", parts=(Image.of(files[first]), digits.QUESTION))]
            chat.append(Message("assistant", llm.chat(chat, **ANSWER).text))
            chat.append(Message("user", parts=(Image.of(files[second]), digits.QUESTION)))
            answers.append(llm.chat(chat, **ANSWER))
        assert share([answer.text for answer in answers], [drawn[second] for _, second in pairs]) >= SECOND
        assert all(answer.usage.cached_tokens > 0 for answer in answers)


def test_http_reads_digits(server: Server, unseen: tuple[list[bytes], list[int]]):
    files, drawn = unseen
    name = names_of(server)[0]
    client = httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120)

    def ask(file: bytes) -> str:
        url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": digits.QUESTION},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": content}], **ANSWER}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    with client, ThreadPoolExecutor(8) as pool:
        assert share(list(pool.map(ask, files)), drawn) >= RIGHT


def test_run_reads_digits(
    server: Server,
    unseen: tuple[list[bytes], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Each is a command line of its own, which the server of this home answers."""
    files, drawn = unseen
    monkeypatch.setenv("FREEHOLD_HOME", str(server.home))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    monkeypatch.setattr(sys, "stdin", None)
    name, answers = names_of(server)[0], []
    options = [f"--{key.replace('_', '-')}={value}" for key, value in ANSWER.items()]
    for i, file in enumerate(files):
        path = tmp_path / f"{i}.png"
        path.write_bytes(file)
        status = main.run(["run", name, "--image", str(path), *options, digits.QUESTION])
        out = capsys.readouterr()
        assert status == 0, out.err
        answers.append(out.out)
    assert share(answers, drawn) >= RIGHT


def test_run_loads_the_model_itself(model: Path, unseen: tuple[list[bytes], list[int]], tmp_path: Path):
    files, drawn = unseen
    path = tmp_path / "digit.png"
    path.write_bytes(files[0])
    command = [sys.executable, "-m", "freehold.cli.main", "run", str(model), "--image", str(path), "--local"]
    done = subprocess.run(
        [*command, "--temperature=0", "--max-tokens=8", digits.QUESTION], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert share([done.stdout], drawn[:1]) == 1
    assert "no place for pictures" in done.stderr
