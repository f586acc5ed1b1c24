"""Whether a mix's predicted divergence is what is measured, and what it wins over a named type of the same size.

    python benches/adapt/mixes.py smollm2:135m --type IQ4_NL --type Q5_K_M

Each named type is written first; then a mix in at most its bytes, of types that llama.cpp reads. Both are compared with
the source on the package's held-out text. CPU-seconds. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from freehold.adapt.quantize.planning import QuantizeRequest
from freehold.adapt.quantize.quantising import quantise
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.cli.bench import version
from freehold.run.store import Store


def main() -> None:
    """Measure, print a line a pair, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument(
        "--type", action="append", required=True, help="A type to be matched in size; repeatable."
    )
    parser.add_argument("--until", type=float, default=0.05, help="The share to which means are known.")
    given = parser.parse_args()
    rows = [pair(given.model, kind, given.until) for kind in given.type]
    facts = {"bench": "mixes", "model": given.model, "machine": cpu_name(), "version": version()}
    print(json.dumps({**facts, "rows": rows}))


def pair(model: str, kind: str, until: float) -> dict[str, Any]:
    """Write a type, and a mix of at most its size; return both divergences."""
    with tempfile.TemporaryDirectory() as folder:
        named, _ = made(model, Path(folder) / "named", QuantizeRequest(type=kind, report=True, until=until))
        request = QuantizeRequest(
            target_bytes=named["result"]["bytes"], portable=True, report=True, until=until
        )
        mix, spent = made(model, Path(folder) / "mix", request)
    row = {
        "type": kind,
        "bytes": named["result"]["bytes"],
        "divergence": named["divergence"]["mean"],
        "mix_bytes": mix["result"]["bytes"],
        "mix_divergence": mix["divergence"]["mean"],
        "mix_predicted": mix["mix"]["predicted_divergence"],
        "mix_cpu_s": round(spent, 1),
    }
    print(
        f"{kind}: {row['bytes'] / 1e6:.1f} MB, {row['divergence']:.4f} nat; mix {row['mix_bytes'] / 1e6:.1f} MB, "
        f"{row['mix_divergence']:.4f} measured, {row['mix_predicted']:.4f} predicted, {spent:.0f} CPU-s"
    )
    return row


def made(model: str, out: Path, request: QuantizeRequest) -> tuple[dict[str, Any], float]:
    """Quantise; return the receipt and the CPU-seconds."""
    settings = load_settings()
    begun = time.process_time()
    return quantise(Store(settings).resolve(model), out, request, settings), time.process_time() - begun


if __name__ == "__main__":
    main()
