"""The second turn of a chat whose first message has a picture, beside the same chat without it.

    python benches/eyes/turns.py [--size 1920x1080] [--kind JPEG] [--rounds 9] [--tokens 64] [--layers 28]

Random weights at published shapes: the text model of Llama 3.2 3B, and the tower of SmolVLM2 with three layers, which
cuts a picture into tiles of 384 pixels. Chats go to /v1/chat/completions of a server of ours, in turns: with
the picture, without it, and without it but with words of as many tokens in its place. The first turn of each chat is
not timed. The second is one token in one chat, and --tokens in another; a ratio is the median of the rounds'.
Drafts by lookup are off: how often a text repeats itself is not the picture's doing. Goal: 1.1 beside the chat without
a picture. What words in its place cost too is attention over as many more tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from benches.eyes.decode import photo
from benches.eyes.encode import SHAPES, write_mmproj
from benches.lib.machine import describe
from benches.lib.random_gguf import write as write_text
from benches.server.load import ask
from benches.server.own_server import names_of
from benches.server.servers import KINDS, Server, free_port

GOAL = 1.1
MARK = "<unused7>"  # a control token of the text model, which has none for pictures
TEXT = {
    "context_length": 8192,
    "embedding_length": 3072,
    "feed_forward_length": 8192,
    "attention.head_count": 24,
    "attention.head_count_kv": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 5e5,
    "rope.dimension_count": 128,
    "attention.key_length": 128,
    "attention.value_length": 128,
}  # of meta-llama/Llama-3.2-3B-Instruct
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
FIRST_TOKENS = 16  # of a first turn's answer
TOWER_LAYERS = 3  # features of the second turn come from memory, so how many it has does not count
KINDS_OF_CHAT = ("picture", "nothing", "words")
ASK = "What is shown here, and where? Answer in one sentence."
AGAIN = "And what is in the middle of it?"


def beside(folder: Path, layers: int) -> Path:
    """Write a text model and a tower of random weights into `folder`; return the model's path."""
    model, shape = folder / "seeing.gguf", SHAPES["siglip-400m"]
    write_text(model, "llama", {**TEXT, "block_count": layers}, TEMPLATE)
    shape = replace(shape, vision=shape.vision | {"projection_dim": TEXT["embedding_length"]})
    write_mmproj(folder / "mmproj-seeing.gguf", shape, TOWER_LAYERS, "F16", {"freehold.mark": MARK})
    return model


def address(width: int, height: int, kind: str) -> str:
    """Return the address of a picture as bodies have it."""
    data = io.BytesIO()
    image: Image.Image = photo(width, height)
    image.save(data, kind, **({"compress_level": 3} if kind == "PNG" else {"quality": 88}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


@dataclass(frozen=True)
class Turn:
    """An answer: how long it took, and what the server says of its prompt."""

    seconds: float
    text: str
    prompt_tokens: int
    cached: int  # tokens of the prompt that were not computed again


class Chats:
    """Chats with one server: two turns each."""

    def __init__(self, port: int, model: str, url: str) -> None:
        self.port, self.model, self._url = port, model, url
        self._words = ""  # of as many tokens as the picture
        self.picture_tokens = 0

    async def measure_picture(self) -> None:
        """Learn how many tokens the picture is, and make words of as many."""
        counts = [(await self._ask(self._first(kind, 0), 1)).prompt_tokens for kind in ("picture", "nothing")]
        self.picture_tokens = counts[0] - counts[1]
        self._words = "the " * (self.picture_tokens // 4)

    async def second(self, kind: str, number: int, tokens: int) -> Turn:
        """Have a chat's first turn, then time its second."""
        messages = self._first(kind, number)
        first = await self._ask(messages, FIRST_TOKENS)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": AGAIN}]
        return await self._ask(messages, tokens)

    def _first(self, kind: str, number: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": f"Question {number}. {ASK}"}]
        if kind == "picture":
            parts.insert(0, {"type": "image_url", "image_url": {"url": self._url}})
        elif kind == "words":
            parts.insert(0, {"type": "text", "text": self._words})
        return [{"role": "user", "content": parts}]

    async def _ask(self, messages: list[dict[str, Any]], tokens: int) -> Turn:
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        answer = await ask(self.port, "/v1/chat/completions", body | {"ignore_eos": True})
        assert answer.ok, answer
        whole = json.loads(answer.body)
        usage = whole["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        text = whole["choices"][0]["message"]["content"] or ""
        return Turn(answer.ended - answer.sent, text, usage["prompt_tokens"], cached)


async def race(chats: Chats, rounds: int, tokens: int) -> dict[str, Any]:
    """Have all kinds of chats in turns, in an order that changes; return seconds by kind."""
    await chats.measure_picture()
    for kind in KINDS_OF_CHAT:
        await chats.second(kind, 1000, tokens)
    seconds: dict[str, dict[str, list[float]]] = {kind: {"first": [], "last": []} for kind in KINDS_OF_CHAT}
    cached: dict[str, int] = {}
    for number in range(rounds):
        for end, count in (("first", 1), ("last", tokens)):
            for kind in KINDS_OF_CHAT[number % 3 :] + KINDS_OF_CHAT[: number % 3]:
                turn = await chats.second(kind, 2 * number + (count > 1), count)
                seconds[kind][end].append(turn.seconds)
                cached[kind] = turn.cached
    return {"seconds": seconds, "cached": cached, "picture_tokens": chats.picture_tokens}


def ratios(seconds: dict[str, dict[str, list[float]]], beside: str, end: str) -> list[float]:
    """Return each round's ratio of the chat with the picture to another."""
    pairs = zip(seconds["picture"][end], seconds[beside][end], strict=True)
    return [with_it / without for with_it, without in pairs]


def main() -> None:
    """Make the files, start the server, race, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1920x1080", help="of the picture, in pixels")
    parser.add_argument("--kind", default="JPEG", choices=("JPEG", "PNG"))
    parser.add_argument("--layers", type=int, default=28, help="of the text model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    url = address(width, height, args.kind)
    with tempfile.TemporaryDirectory() as folder:
        model, port = beside(Path(folder), args.layers), free_port()
        about = describe(model)
        command = [
            sys.executable,
            "-m",
            "freehold.cli.main",
            "serve",
            str(model),
            "--port",
            str(port),
            "--no-speculation",
        ]
        with Server(command, port, {}, KINDS["freehold"].health) as server:
            chats = Chats(port, names_of(server)[0], url)
            record = asyncio.run(race(chats, args.rounds, args.tokens))
    seconds = record["seconds"]
    print(
        f"{args.layers} layers; a {args.kind} of {args.size} pixels, {len(url):,} characters, "
        f"{record['picture_tokens']:,} tokens; second turns of "
        f"{args.tokens} tokens, medians of {args.rounds}; load {about['load_1m']}"
    )
    for kind in KINDS_OF_CHAT:
        first, last = (1e3 * statistics.median(seconds[kind][end]) for end in ("first", "last"))
        print(
            f"{kind:8} first token {first:8.1f} ms   last {last:8.1f} ms   "
            f"{record['cached'][kind]:,} tokens from the cache"
        )
    for other in KINDS_OF_CHAT[1:]:
        first, last = (ratios(seconds, other, end) for end in ("first", "last"))
        print(
            f"picture / {other:8} first token {statistics.median(first):5.2f} ({min(first):.2f} to {max(first):.2f})"
            f"   last {statistics.median(last):5.2f} ({min(last):.2f} to {max(last):.2f})"
        )
        record[f"ratio_{other}"] = {"first": statistics.median(first), "last": statistics.median(last)}
    print(f"goal: {GOAL} beside a chat without a picture")
    print(json.dumps({"bench": "eyes/turns", **about, **record}))


if __name__ == "__main__":
    main()
