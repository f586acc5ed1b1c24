"""Judges every tiny model in every form, and writes docs/reference/families.json, of which the table of models is made.

Run from the repository's root: `python -m tests.vectors.check_families CONVERTED [PEERS_PYTHON] [--only NAME ...]`,
where CONVERTED is the folder that convert.py filled. An error is the largest difference from transformers' logits, of
oracle and engine, full forward and prefill + single steps, in standard deviations of the logits. llama.cpp's own logits
for the converted file stand beside: it knows no window of `llama` or `phi3`, and its GELU is a table of halves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benches.lib.environments import LLAMA_CPP, environment
from benches.lib.peer import Child, PeerFailed
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle
from tests.models.golden import GOLDEN, error, golden, native_logits, oracle_logits, pieces, write_model
from tests.vectors import weights

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "families.json"
# What the converter drops, so that no reader of its file can compute the model.
LOST = {
    "mistral": "the window",
    "ministral": "the windows",
    "starcoder2-window": "the window",
    "llama4": "the chunk",
    "dots1-window": "the windows",
}
FORMS = {"safetensors": "hf", "published": "published", "gguf": "gguf"}


def judged(family: str, path: Path) -> float:
    """Return the largest error of all paths through one file, after the chosen experts were found to be the same."""
    ids, _ = golden(family)
    oracle, model = Oracle(path), load_model(path, threads=1)
    session = oracle.session()
    rows = [session.step(ids)]
    with np.load(GOLDEN / f"{family}.npz") as data:
        if "experts" in data:
            chosen = [np.sort(routes.ids) for routes in session.routes]
            assert np.array_equal(chosen, data["experts"]), f"{family}: other experts in {path.name}"
    rows += [oracle_logits(oracle, ids, pieces(ids))]
    rows += [native_logits(model, ids, chunks, kv_type="f32") for chunks in ([len(ids)], pieces(ids))]
    return max(error(each, family) for each in rows)


def speed(model: LoadedModel, ids: list[int]) -> float:
    """Tokens a second of single steps on one thread, the best of three runs."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        native_logits(model, ids, [1] * len(ids))
        took.append(time.perf_counter() - started)
    return len(ids) / min(took)


def of_llama_cpp(python: Path, family: str, path: Path) -> float | str:
    """The error of llama.cpp on the same file, or why there is none."""
    ids, _ = golden(family)
    try:
        with Child(python, LLAMA_CPP) as peer:
            peer.ask("load", path=str(path), threads=1, context=64, kv="f32", logits=True)
            return error(peer.logits(ids), family)
    except PeerFailed:
        return "does not load"


def check(family: str, converted: Path, python: Path) -> dict[str, Any]:
    """Judge one tiny model in all its forms."""
    tiny, errors = weights.FAMILIES[family], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, form in FORMS.items():
            if form != "gguf" or tiny.gguf:
                errors[name] = judged(family, write_model(family, form, Path(folder) / name))
        quick = speed(load_model(Path(folder) / "safetensors" / "model", threads=1), golden(family)[0])
    path, peer = converted / f"{family}.gguf", None
    if path.exists() and family not in LOST:
        errors["converted"] = judged(family, path)
        peer = of_llama_cpp(python, family, path)
    return {
        "name": family,
        "class": tiny.hf["architectures"][0],
        "architecture": tiny.architecture,
        "lost": LOST.get(family, ""),
        "errors": {name: float(f"{value:.1e}") for name, value in errors.items()},
        "llama_cpp": float(f"{peer:.1e}") if isinstance(peer, float) else peer,
        "tokens_per_second": round(quick),
    }


def main() -> None:
    """Check each family and write the page's data, sorted by name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("converted", type=Path)
    parser.add_argument("python", type=Path, nargs="?")
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    python = given.python or environment("llama_cpp")
    found = {row["name"]: row for row in json.loads(PAGE.read_text())} if PAGE.exists() else {}
    for family in given.only or weights.FAMILIES:
        row = found[family] = check(family, given.converted, python)
        print(family, row["errors"], row["llama_cpp"], flush=True)
    rows = [json.dumps(found[name]) for name in sorted(found) if name in weights.FAMILIES]
    PAGE.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
