"""Layers at published models' real shapes with random weights, beside llama.cpp: same file, same threads, in turns.

`python benches/engine/layers.py [SHAPE ...] [--folder PATH] [--threads 2] [--rounds 5] [--llama-python PYTHON]`.
SHAPE is one of lib/shapes.py's (default: all). A file is made on first use: two to six layers, the types of a Q4_K_M
file, a vocabulary of 8,192. Random router rows spread tokens evenly over the experts, which is the most weights a
prompt can read. llama.cpp is measured with and without its re-laid weights, and the faster setting of each figure
counts. A table goes to stdout, then one JSON line a shape.
Path: layers.py -> lib.random_gguf -> lib.peer.Child -> drivers/peer_freehold.py, drivers/peer_llama_cpp.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import FREEHOLD, LLAMA_CPP, environment
from benches.lib.machine import better, bounds, ceilings, describe, say
from benches.lib.peer import Child
from benches.lib.random_gguf import VOCAB, Stored, family_of, tensors, write
from benches.lib.shapes import SHAPES, Shape
from freehold._native import BLOCK_TOKENS, KvCache
from freehold.base.layers import LayerSpec, kept_bytes, recurrent_bytes
from freehold.run.formats.fields import Fields

SETTINGS: tuple[dict[str, Any], ...] = ({}, {"repack": False})


@dataclass(frozen=True)
class Figure:
    """One thing measured: a prompt of `size`, or `steps` tokens after it."""

    name: str
    kind: str
    size: int
    steps: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the timed work yields."""
        return {"prefill": self.size, "decode": self.steps, "batch": self.size * self.steps}[self.kind]


def figures_of(shape: Shape) -> list[Figure]:
    """List what is measured at a shape: a prompt, decoding at its depths, eight streams."""
    decode = [Figure(f"decode after {depth:,}", "decode", depth, 32) for depth in shape.depths]
    return [Figure("prefill 512", "prefill", 512), *decode, Figure("8 streams", "batch", 8, 32)]


# --- what bounds it --------------------------------------------------------------------------------


def ceiling(shape: Shape, figure: Figure, gb_s: float, gops: float) -> float:
    """Tokens per second that reads or multiplications allow, whichever are fewer.

    A step reads the matrices that its tokens share, of experts those that any token draws if each draws its own; then
    keys, values and states of what came before. Of the last layer only rows with an output are computed, which is left
    out here: the ceiling of a prompt is too low by up to a layer of two.
    """
    tokens = 1 if figure.kind == "decode" else figure.size
    rows = 1 if figure.kind == "prefill" else tokens  # with an output
    nbytes = weights = 0.0
    for it in tensors(shape.architecture, shape.keys):
        through = rows if it.key == "head" else tokens
        nbytes += it.nbytes * _touched(it, through)
        weights += it.weights * it.share * through if len(it.shape) > 1 else 0
    if figure.kind == "decode":
        nbytes += kept(shape, figure.size + figure.steps // 2)
    return tokens / max(nbytes / (gb_s * 1e9), 2 * weights / (gops * 1e9))


def _touched(it: Stored, tokens: int) -> float:
    return 1 - (1 - it.share) ** tokens if 0 < it.share < 1 else it.share


def specs_of(shape: Shape) -> list[LayerSpec]:
    """Say what each layer keeps of a sequence."""
    prefix = f"{shape.architecture}."
    family = family_of(shape.architecture, shape.keys)
    meta = Fields({prefix + key: value for key, value in shape.keys.items()}, prefix)
    return [layer.keeps for layer in family.layers(family.config_from_gguf(meta, VOCAB))]


def kept(shape: Shape, tokens: int) -> int:
    """Return the bytes of keys, values, latents and states that one token reads after so many."""
    return kept_bytes(specs_of(shape), tokens) + recurrent_bytes(specs_of(shape))


def page_bytes(shape: Shape, tokens: int) -> int:
    """Return the bytes of the cache's own pages of so many tokens, as it allocates them."""
    specs = specs_of(shape)
    states = [spec for spec in specs if spec.recurrent]
    if states:
        return 0
    return -(-tokens // BLOCK_TOKENS) * KvCache([spec.page for spec in specs], 1, "f16").bytes_per_block


# --- the race --------------------------------------------------------------------------------------


def speed(child: Child, figure: Figure, threads: int, options: dict[str, Any]) -> float:
    """Run once; return tokens per second."""
    work = {"kind": figure.kind, "size": figure.size, "steps": figure.steps}
    took = child.ask("run", **work, threads=threads, options=options)
    return figure.tokens / took["seconds"]


def alone(ours: Child, figure: Figure, threads: int, rounds: int) -> dict[str, Any]:
    """Measure ours where the peer is not timed."""
    speed(ours, figure, threads, {})
    return {"figure": figure.name, "freehold": [speed(ours, figure, threads, {}) for _ in range(rounds)]}


def race(ours: Child, theirs: Child, figure: Figure, threads: int, rounds: int) -> dict[str, Any]:
    """Measure both in turns; the ratio of a round is with their better setting over all rounds."""
    for child, options in ((ours, {}), *((theirs, setting) for setting in SETTINGS)):
        speed(child, figure, threads, options)  # packs, first touches, thread trials
    mine: list[float] = []
    peer: list[list[float]] = [[] for _ in SETTINGS]
    for _ in range(rounds):
        mine.append(speed(ours, figure, threads, {}))
        for found, setting in zip(peer, SETTINGS, strict=True):
            found.append(speed(theirs, figure, threads, setting))
    best = max(peer, key=statistics.median)
    return {
        "figure": figure.name, "freehold": mine, "llama.cpp": best, "setting": SETTINGS[peer.index(best)],
        "ratio": statistics.median(a / b for a, b in zip(mine, best, strict=True)),
    }  # fmt: skip


def run(args: argparse.Namespace, name: str, path: Path, stack: ExitStack) -> dict[str, Any]:
    """Load a shape's file in both, race every figure, print the table; return the record."""
    shape, context = SHAPES[name], max(SHAPES[name].depths) + 1024
    python = Path(args.llama_python) if args.llama_python else environment("llama_cpp")
    ours = stack.enter_context(Child(sys.executable, FREEHOLD, stops=True))
    theirs = stack.enter_context(Child(python, LLAMA_CPP, stops=True))
    loaded = [
        child.ask("load", path=str(path), context=context, threads=args.threads) for child in (ours, theirs)
    ]
    before, figures = ceilings(ours, [args.threads]), []
    for figure in figures_of(shape):
        say(f"{name}: {figure.name}")
        most = {"decode": shape.peer_depth, "batch": shape.peer_streams}.get(figure.kind, figure.size)
        if figure.size > most:
            figures.append(alone(ours, figure, args.threads, args.rounds))
        else:
            figures.append(race(ours, theirs, figure, args.threads, args.rounds))
    limits = bounds(better(before, ceilings(ours, [args.threads])))
    print(
        f"{name} ({shape.source}): {limits.read_gb_s:.1f} GB/s, {limits.int8_gops:.0f} GOPS; "
        f"tokens/s, medians of {args.rounds}"
    )
    print(f"{'':20}{'freehold':>10}{'llama.cpp':>11}{'ratio':>7}{'ceiling':>9}")
    for figure, result in zip(figures_of(shape), figures, strict=True):
        result["ceiling"] = ceiling(shape, figure, limits.read_gb_s, limits.int8_gops)
        mine, peer = statistics.median(result["freehold"]), "-"
        if "llama.cpp" in result:
            peer = f"{statistics.median(result['llama.cpp']):.1f}"
        ratio = f"{result['ratio']:.2f}" if "ratio" in result else "-"
        print(f"{figure.name:20}{mine:10.1f}{peer:>11}{ratio:>7}{result['ceiling']:9.0f}")
    cached = {str(depth): kept(shape, depth) for depth in shape.depths}
    record = {
        "bench": "layers",
        "shape": name,
        "source": shape.source,
        **describe(path),
        "cached_bytes": cached,
        "page_bytes": {str(depth): page_bytes(shape, depth) for depth in shape.depths},
    }
    record |= {"threads": args.threads, "ceilings": asdict(limits)}
    return record | {"versions": [facts["version"] for facts in loaded], "figures": figures}


def main() -> None:
    """Read the command line, make the files, race one shape after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], help="default: all")
    parser.add_argument(
        "--folder", type=Path, help="where files lie or are to be written (default: a temporary one)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--llama-python", help="an interpreter with llama-cpp-python (default: installed into .peers/)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.shapes or SHAPES:
            path = (args.folder or Path(folder)) / f"{name}.gguf"
            if not path.exists():
                say(f"writing {path}")
                write(path, SHAPES[name].architecture, SHAPES[name].keys)
            with ExitStack() as stack:
                print(json.dumps(run(args, name, path, stack)), flush=True)


if __name__ == "__main__":
    main()
