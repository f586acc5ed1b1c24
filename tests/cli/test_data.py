"""`freehold data from-ledger|from-chats`: files to train on, from a gateway's texts and from chats; then a training."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.route.providers.contract import SetLabel
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.ledger.store import Ledger
from freehold.run.models.tiny import make
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatChange
from tests.router.ledger.rows import NOON, row

Run = Callable[..., tuple[int, str, str]]
KEEP = ("--personal", "keep")
TRAINING = ("--lr", "2e-2", "--batch", "4", "--epochs", "1", "--replay", "1", "--max-length", "128")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


async def kept(path: Path, count: int) -> None:
    """Write rows and texts of a route; every third has a label, and its text is there by mistake."""
    ledger, texts = Ledger.open(path), KeptTexts(texts_beside(path))
    for n in range(count):
        labels = (SetLabel("private", "header"),) if n % 3 == 0 else ()
        word = "SECRET" if labels else "plain"
        await ledger.book(row(f"{n:04x}", NOON + n, labels=labels, outcome="whole"))
        job = Job(messages=(Message("user", f"{word} {n}?"),))
        texts.keep(
            f"{n:04x}", NOON + n, "tickets", "big", job, [(0, Chunk(f"={n % 9}", finish_reason="stop"))]
        )
    await ledger.close()


@pytest.mark.heavy
def test_kept_texts_of_a_route_are_taught(run: Run, home: Path):
    pytest.importorskip("torch")
    asyncio.run(kept(home / "ledger.sqlite", 60))
    status, out, err = run("data", "from-ledger", "--route", "tickets", "-o", "tickets", *KEEP)
    assert status == 0, err
    assert "examples.jsonl" in out and "20 for: a label" in out and "receipt" in out
    assert not any("SECRET" in path.read_text() for path in Path("tickets").iterdir())
    make.write_gguf(make.config("llama"), Path("tiny.gguf"))
    words = (
        "finetune",
        "tiny.gguf",
        "--data",
        "tickets/examples.jsonl",
        "--test",
        "tickets/examples-test.jsonl",
    )
    status, out, err = run(*words, "-o", "mine", "--rank", "2", "--threads", "1", *TRAINING)
    assert status == 0, err


def chatted(home: Path) -> None:
    """A chat whose first answer the user worded anew, and whose second was computed again."""
    folder = ChatFolder.of(home)
    card = folder.create(model="tiny")
    with folder.writer(card.id) as writer:
        first = writer.message("user", "what is red?", parent=None)
        writer.message("assistant", "a colour", parent=first.id, model="tiny")
        edited = writer.message("assistant", "RED", parent=first.id, edited=True)
        second = writer.message("user", "and blue?", parent=edited.id)
        writer.message("assistant", "a sea", parent=second.id, model="tiny")
        last = writer.message("assistant", "BLUE", parent=second.id, model="tiny")
        writer.set(ChatChange(leaf=last.id))


def test_edited_and_repeated_answers_of_chats_become_examples_and_pairs(run: Run, home: Path):
    chatted(home)
    status, out, err = run("data", "from-chats", "-o", "mine", "--test-share", "0", "--json", *KEEP)
    assert status == 0, err
    record = json.loads(out)
    assert (record["examples"], record["pairs"]) == (1, 2)
    example = json.loads(Path("mine/examples.jsonl").read_text())
    assert [m["content"] for m in example["messages"]] == ["what is red?", "RED"]
    pairs = [json.loads(line) for line in Path("mine/pairs.jsonl").read_text().splitlines()]
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("RED", "a colour"), ("BLUE", "a sea")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("from-ledger", "--route", "tickets", "-o", "x"), "there is no ledger"),
        (("from-ledger", "-o", "x"), "--route"),
        (("from-chats", "-o", "x"), "there is nothing to train on in your chats"),
        (("from-chats", "-o", "home"), "there is nothing to train on"),
        (("from-chats", "-o", "x", "--apart", "none.jsonl"), "none.jsonl"),
    ],
)
def test_what_gives_no_data_is_refused_in_one_line(run: Run, words: tuple[str, ...], message: str):
    status, out, err = run("data", *words, *(KEEP if words[0] == "from-chats" else ()))
    assert status != 0 and not out
    assert err.startswith("error: ") and message in err and len(err.splitlines()) <= 2
    assert not Path("x").exists()
