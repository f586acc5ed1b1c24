"""`freehold embed MODEL [TEXT...]`: texts to vectors, one per line.

Knows lines and number formats; LLM.embed computes. The model is loaded in this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.serving import MAX_TEXTS
from freehold.base.terminal import Ticking
from freehold.cli.shared import held_or_fetched, json_option, offline_option, with_offline

if TYPE_CHECKING:
    from freehold.run.local import LLM

PORTION = 256  # lines of stdin that are read before vectors are written


@click.command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1)
@json_option
@click.option(
    "--pooling", type=click.Choice(["mean", "last", "cls"]), help="Pooling; default: the model's own."
)
@click.option("--dimensions", type=click.IntRange(1), help="Keep this many dimensions, normalised again.")
@click.option("--truncate", is_flag=True, help="Truncate texts longer than the context, with a warning.")
@click.option("--context", type=click.IntRange(1), help="Maximum tokens per text; default: the model's own.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores.")
@offline_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    texts: tuple[str, ...],
    as_json: bool,
    context: int | None,
    threads: int | None,
    offline: bool,
    **pooled: Any,
) -> None:
    """Print the embedding of each TEXT, or of each line of stdin, normalised to unit length.

    Prints one line of numbers per text; with --json, an object with index, tokens, cut and embedding.
    """
    from freehold.run.store import Store

    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("there is no text", "give one as an argument, or lines through a pipe")
    store = Store(with_offline(settings, offline))
    ref = held_or_fetched(store, model)
    with Ticking(f"loading {ref.name}"):
        from freehold.run.local import open_shown
    lines = texts or (line.rstrip("\n") for line in sys.stdin)
    with open_shown(ref, context=context, threads=threads, packs=store.packs) as llm:
        at = 0
        for portion in _portions(lines):
            _write(llm, portion, at, as_json, pooled)
            at += len(portion)


def _portions(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while portion := list(islice(rest, min(PORTION, MAX_TEXTS))):
        yield portion


def _write(llm: LLM, texts: list[str], first: int, as_json: bool, pooled: Mapping[str, Any]) -> None:
    with Ticking(f"embedding {len(texts):,} texts"):
        got = llm.embed(texts, **pooled)
    for i, (vector, tokens) in enumerate(zip(got.vectors.tolist(), got.tokens, strict=True)):
        numbers = [float(f"{n:.8g}") for n in vector]  # a float32's digits
        if as_json:
            row = {"index": first + i, "tokens": tokens, "cut": i in got.cut, "embedding": numbers}
            click.echo(json.dumps(row))
        else:
            click.echo(" ".join(f"{n:.8g}" for n in numbers))
    for i in got.cut:
        click.echo(f"warning: text {first + i} was cut to {llm.context:,} tokens", err=True)
