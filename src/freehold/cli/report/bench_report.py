"""Writes what a machine did into a file that its user can send: `freehold bench MODEL --report FILE`.

Holds the processor, its kernels, the ceilings and the speeds, and nothing about the person: no host or user name, no
path, no serial number, no time of day, no text; a model is named only if the published catalogue knows it. Its schema,
docs/guides/bench-report.schema.json, allows no field that is not there. Knows bench's facts; measures nothing.
Path: bench -> write -> FILE
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from freehold.catalog.models import models
from freehold.errors import StoreError, UsageError
from freehold.machine import cgroup_limit_bytes, cpu_quota, processor
from freehold.machine.memory import page_sizes
from freehold.platforms import SYSTEM

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
