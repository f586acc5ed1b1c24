"""`freehold bench MODEL`: prefill, decode and load of one model, each beside the machine's ceiling.

Decode reads every weight once per token, so memory bounds it: read bandwidth / bytes per token. Prefill
multiplies every weight for every token, so arithmetic bounds it: int8 operations / (2 x weights). Rounds
alternate prefill and decode, so that other load affects both; medians are reported. The ceilings leave out float
work, attention and synchronisation, so 100 % is not reached.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from freehold.base.catalog.models import models
from freehold.base.errors import StoreError, UsageError
from freehold.base.machine import (
    CROWDED,
    Crowd,
    cgroup_limit_bytes,
    cpu_name,
    cpu_quota,
    page_sizes,
    processor,
)
from freehold.base.options import option
from freehold.base.platforms import SYSTEM
from freehold.base.terminal import Ticking
from freehold.cli.options import setting_options
from freehold.cli.shared import held_or_fetched, kv_option, offline_option, with_offline
from freehold.run.store import ModelRef, Store

if TYPE_CHECKING:
    from freehold.base.types import KvType, Usage
    from freehold.run.local import LLM


DECODE_PROMPT = 32  # tokens before the timed decode, as a short question has
ATTEMPTS = 8  # the answer to a random prompt may end early; then another prompt is used
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is timed."""

    prompt: int = option(512, "Tokens to prefill.", least=2, most=32768)
    tokens: int = option(128, "Tokens to decode.", least=2, most=8192)
    depth: int = option(0, "Tokens in the cache before the timed decode.", least=0, most=1 << 20)
    rounds: int = option(5, "Rounds; medians are reported.", least=1, most=100)
    threads: int | None = option(None, "Number of compute threads.", least=1, most=1024)


@click.command("bench")
@click.argument("model")
@setting_options(BenchPlan)
@kv_option
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON line.")
@click.option(
    "--peers", is_flag=True, help="Also measure other engines, in turns; needs a checkout of Freehold."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a report to send us: machine, kernels, speeds; no names, no paths.",
)
@offline_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    kv_type: KvType,
    as_json: bool,
    peers: bool,
    report: Path | None,
    offline: bool,
    **options: Any,
) -> None:
    """Measure MODEL on this machine. The last line is JSON."""
    if peers:
        _check_peers(ctx)
    if report:
        check(report)
    store = Store(with_offline(ctx.obj, offline))
    ref = held_or_fetched(store, model)
    plan = BenchPlan(**options)
    if peers:
        ctx.exit(_peers(ref, plan, as_json))
    crowd = Crowd()
    facts = measure(ref, store.packs, plan, kv_type)
    if plan.threads is None and kv_type == "f16":
        _keep(ctx.obj.home, ref, facts, crowd.share())
    if report:
        write(report, facts, crowd.share())
    if not as_json:
        _print(facts)
    click.echo(json.dumps(facts))


def _keep(home: Path, ref: ModelRef, facts: dict[str, Any], load: float) -> None:
    """Store the ceilings and the speeds for `freehold fit`."""
    from freehold.choose.advisor import machine
    from freehold.choose.advisor.learning import keep

    loaded = (facts["load_average"] or 0) > 1.5 * facts["threads"]  # our own threads are in it
    busy = load > CROWDED or loaded
    rates = machine.Rates(facts["read_gb_s"], facts["int8_gops"], busy=busy)
    machine.keep(home, machine.name_here(), rates)
    depth = facts["decode_depth"] + DECODE_PROMPT + facts["decode_tokens"] // 2
    timed = [
        ("decode", depth, facts["decode_tok_s"]),
        ("prefill", facts["prompt_tokens"], facts["prefill_tok_s"]),
    ]
    keep(home, ref.path, timed, rates, load, ref.rounding)


def measure(ref: ModelRef, packs: Path, plan: BenchPlan, kv_type: KvType) -> dict[str, Any]:
    """Load `ref`, time prefills and decodes in rounds, measure the ceilings; return the facts to print."""
    with Ticking(f"loading {ref.name}"):
        from freehold import _native as native
        from freehold.run.local import open_shown

    context = max(plan.prompt, plan.depth + DECODE_PROMPT + plan.tokens) + 2
    # The ceiling is of plain decoding; benches/engine/speculation.py measures speculation.
    with (
        open_shown(
            ref, context=context, threads=plan.threads, kv_type=kv_type, speculate=False, packs=packs
        ) as llm,
        Ticking(
            f"timing {ref.name}: {plan.rounds} rounds of {plan.prompt:,} tokens read and {plan.tokens:,} written"
        ),
    ):
        timer = _Timer(llm, plan.depth)
        timer.prefill(min(plan.prompt, 64))  # pages the weights in
        rates = [(timer.prefill(plan.prompt), timer.decode(plan.tokens)) for _ in range(plan.rounds)]
        read_bytes = llm.bytes_per_token + plan.depth * llm.cache_bytes_per_token
        read, gops = native.measure_read_gb_s(llm.threads), native.measure_int8_gops(llm.threads)
        tiles = native.measure_int8_gops(llm.threads, tiles=True)
        return {
            "model": llm.name,
            "quantization": llm.quantization,
            "machine": cpu_name(),
            "isa": native.isa(),
            "threads": llm.threads,
            "kv_type": kv_type,
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "version": version(),
            "python": platform.python_version(),
            "prompt_tokens": plan.prompt,
            "decode_tokens": plan.tokens,
            "decode_depth": plan.depth,
            "rounds": plan.rounds,
            **_summary("prefill", [p for p, _ in rates]),
            **_summary("decode", [d for _, d in rates]),
            "load_s": round(llm.load_s, 3),
            "read_gb_s": round(read, 2),
            "int8_gops": round(gops, 1),
            "int8_tile_gops": round(tiles, 1),
            "bytes_per_token": llm.bytes_per_token,
            "weights_per_token": llm.weights_per_token,
            "decode_ceiling_tok_s": round(read * 1e9 / read_bytes, 1),
            "prefill_ceiling_tok_s": round(max(gops, tiles) * 1e9 / (2 * llm.weights_per_token), 1),
        }


class _Timer:
    """Times prompts of random tokens, each different, so that the prefix cache has none of them.

    The tokens that fill the cache to `depth` before a decode may be cached: they are not timed.
    """

    def __init__(self, llm: LLM, depth: int = 0) -> None:
        self._llm, self._random = llm, random.Random(20261124)
        self._words = llm.tokenize("The quick brown fox jumps over the lazy dog while seven wizards watch.")
        self._deep = self._ids(depth)

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(self._words, k=count)

    def _generate(self, ids: list[int], tokens: int) -> Usage:
        return self._llm.generate(ids, max_tokens=tokens, temperature=0).usage

    def prefill(self, tokens: int) -> float:
        """Return tokens per second of a prompt of `tokens`."""
        return self._generate(self._ids(tokens), 1).prefill_tok_s

    def decode(self, tokens: int) -> float:
        """Return tokens per second over `tokens` greedy steps after `depth` tokens and a short prompt."""
        for _ in range(ATTEMPTS):
            usage = self._generate(self._deep + self._ids(DECODE_PROMPT), tokens + 1)
            if usage.completion_tokens > tokens // 2:
                return usage.decode_tok_s
        raise UsageError(
            f"{ATTEMPTS} prompts in a row ended before {tokens // 2} tokens", "ask for fewer --tokens"
        )


def _summary(name: str, rates: list[float]) -> dict[str, float]:
    return {
        f"{name}_tok_s": round(statistics.median(rates), 2),
        f"{name}_min_tok_s": round(min(rates), 2),
        f"{name}_max_tok_s": round(max(rates), 2),
    }


def version() -> str:
    """Return the release, and in a checkout the commit."""
    from freehold.base.version import __version__

    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    if (ROOT / ".git").exists():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{__version__}+{done.stdout.strip()}" if done.returncode == 0 else __version__
    return __version__


def _print(facts: dict[str, Any]) -> None:
    click.echo(
        f"{facts['model']} {facts['quantization']}, {facts['machine']}, {facts['isa']}, "
        f"{facts['threads']} threads, freehold {facts['version']}"
    )
    tiles = facts["int8_tile_gops"]
    peak = f"{tiles:,.0f} int8 GOPS of tiles" if tiles else f"{facts['int8_gops']:,.0f} int8 GOPS"
    for name, tokens, bound in (
        ("prefill", facts["prompt_tokens"], peak),
        ("decode", facts["decode_tokens"], f"{facts['read_gb_s']:.1f} GB/s read"),
    ):
        rate, ceiling = facts[f"{name}_tok_s"], facts[f"{name}_ceiling_tok_s"]
        spread = f"{facts[f'{name}_min_tok_s']:.1f} to {facts[f'{name}_max_tok_s']:.1f}"
        click.echo(
            f"{name:<8}{rate:>9.1f} tok/s  ({spread}, {tokens} tokens)  "
            f"{rate / ceiling:.0%} of the ceiling {ceiling:,.1f} ({bound})"
        )
    click.echo(f"load    {facts['load_s']:>9.2f} s")


def _check_peers(ctx: click.Context) -> None:
    """Raise UsageError for options that a comparison fixes."""
    for name in ("prompt", "tokens", "depth", "kv_type", "report"):
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is fixed where peers are compared", f"leave out --peers or {option}")


def _peers(ref: ModelRef, plan: BenchPlan, as_json: bool) -> int:
    """Run benches/engine/peers.py of the checkout that has this package."""
    script = ROOT / "benches" / "engine" / "peers.py"
    if not script.is_file():
        raise UsageError(
            "--peers needs the benches/ folder, which an installed package does not have",
            "clone Freehold and run it from there",
        )
    command = [sys.executable, str(script), str(ref.path), "--rounds", str(plan.rounds)]
    command += ["--threads", str(plan.threads)] if plan.threads else []
    return subprocess.run([*command, *(["--json"] if as_json else [])], check=False).returncode


# --- writes what a machine did into a file that its user can send -----------------------------------
# `freehold bench MODEL --report FILE`.
# Holds the processor, its kernels, the ceilings and the speeds, and nothing about the person: no host or user
# name, no path, no serial number, no time of day, no text; a model is named only if the published catalogue
# knows it. Its schema, docs/guides/bench-report.schema.json, allows no field that is not there.

SCHEMA = "freehold-bench-report/1"


def check(path: Path) -> None:
    """Raise UsageError, before anything is measured, where the report could not be written."""
    if path.exists():
        raise UsageError(f"{path} exists", "name another file for --report")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.absolute().parent} is not a folder", "name another file for --report")


def write(path: Path, facts: Mapping[str, Any], others: float) -> None:
    """Write the report of one run of bench; `others`: the share of our cores that other processes used meanwhile."""
    text = json.dumps(report(facts, others), indent=1) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from e


def report(facts: Mapping[str, Any], others: float) -> dict[str, Any]:
    """Put the facts of a run in the order of the schema."""
    return {
        "schema": SCHEMA,
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "freehold": facts["version"],
        "python": facts["python"],
        "machine": _machine(),
        "kernels": _kernels(),
        "threads": facts["threads"],
        "ceilings": {name: facts[name] for name in ("read_gb_s", "int8_gops", "int8_tile_gops")},
        "model": _model(facts),
        "prefill": {"tokens": facts["prompt_tokens"], **_speeds("prefill", facts)},
        "decode": {
            "tokens": facts["decode_tokens"],
            "depth": facts["decode_depth"],
            **_speeds("decode", facts),
        },
        "rounds": facts["rounds"],
        "load_s": facts["load_s"],
        "others": round(others, 3),
    }


def _machine() -> dict[str, Any]:
    chip = processor()
    return {
        "processor": chip.name,
        "board": chip.board,
        "cores": [asdict(kind) for kind in chip.kinds],
        "features": list(chip.features),
        "translated": chip.is_translated,
        "system": SYSTEM,
        "release": _numbers(platform.release()),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "memory": psutil.virtual_memory().total,
        "pages": asdict(page_sizes()),
        "limited": cgroup_limit_bytes() is not None or cpu_quota() is not None,
    }


def _numbers(release: str) -> str:
    """Keep the numbers of a kernel's release: what follows them is free text of the one who built it."""
    match = re.match(r"\d+(\.\d+)*", release)
    return match[0] if match else ""


def _kernels() -> dict[str, Any]:
    from freehold import _native as native

    forced = bool(os.environ.get("FREEHOLD_ISA"))
    return {"in_use": native.isa(), "runnable": list(native.isas()), "forced": forced}


def _model(facts: Mapping[str, Any]) -> dict[str, Any]:
    published = any(
        facts["model"] == m.name for m in models(Path(os.devnull))
    )  # without the user's own catalogue
    numbers = {
        name: facts[name] for name in ("quantization", "kv_type", "bytes_per_token", "weights_per_token")
    }
    return {"name": facts["model"] if published else "", **numbers}


def _speeds(kind: str, facts: Mapping[str, Any]) -> dict[str, float]:
    return {name: facts[f"{kind}_{name}"] for name in ("tok_s", "min_tok_s", "max_tok_s", "ceiling_tok_s")}
