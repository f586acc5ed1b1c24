"""A mixture of experts at Qwen3-30B-A3B's layer shapes, beside llama.cpp: same file, same threads, in turns.

`python benches/engine/moe.py [--file PATH] [--threads 2] [--rounds 5] [--llama-python PYTHON]`. The file is made on
first use: 4 layers of random weights (hidden 2048, 128 experts of 768, top 8, 32 heads of 128 over 4), gate and up in
Q4_K, down in Q4_K and Q6_K by turns as in a Q4_K_M file, attention in Q4_K, the embedding and head of 8,192 tokens in
Q6_K: 1.6 GB. Random router rows spread tokens evenly over the experts, which is the most weights a prompt can read.
llama.cpp is measured with and without its re-laid weights, and the faster setting of each figure counts. A table goes
to stdout, then one JSON line.
Path: moe.py -> lib.peer.Child -> drivers/peer_freehold.py, drivers/peer_llama_cpp.py
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
from typing import Any, TypeAlias

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import FREEHOLD, LLAMA_CPP, environment
from benches.lib.machine import better, bounds, ceilings, describe, say
from benches.lib.peer import Child

LAYERS, HIDDEN, VOCAB = 4, 2048, 8192
EXPERTS, TOP_K, INNER = 128, 8, 768
HEADS, KV_HEADS, HEAD_DIM = 32, 4, 128
Q4, Q6, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "F32"))
BLOCK = {Q4: 144, Q6: 210}  # bytes of 256 weights
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


FIGURES = (
    Figure("prefill 512", "prefill", 512),
    Figure("prefill 128", "prefill", 128),
    Figure("decode after 512", "decode", 512, 64),
    Figure("16 streams", "batch", 16, 32),
)


Matrix: TypeAlias = tuple[tuple[int, ...], gguf.GGMLQuantizationType]


# --- the file --------------------------------------------------------------------------------------


def matrices() -> dict[str, Matrix]:
    """Name every matrix with its shape and type."""
    found: dict[str, Matrix] = {
        "token_embd.weight": ((VOCAB, HIDDEN), Q6),
        "output.weight": ((VOCAB, HIDDEN), Q6),
    }
    for i in range(LAYERS):
        more = Q6 if i % 2 else Q4
        found |= {
            f"blk.{i}.attn_q.weight": ((HEADS * HEAD_DIM, HIDDEN), Q4),
            f"blk.{i}.attn_k.weight": ((KV_HEADS * HEAD_DIM, HIDDEN), Q4),
            f"blk.{i}.attn_v.weight": ((KV_HEADS * HEAD_DIM, HIDDEN), more),
            f"blk.{i}.attn_output.weight": ((HIDDEN, HEADS * HEAD_DIM), Q4),
            f"blk.{i}.ffn_gate_inp.weight": ((EXPERTS, HIDDEN), F32),
            f"blk.{i}.ffn_gate_exps.weight": ((EXPERTS, INNER, HIDDEN), Q4),
            f"blk.{i}.ffn_up_exps.weight": ((EXPERTS, INNER, HIDDEN), Q4),
            f"blk.{i}.ffn_down_exps.weight": ((EXPERTS, HIDDEN, INNER), more),
        }
    return found


def values(
    rng: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, deviation: float
) -> np.ndarray:
    """Draw a matrix: normal floats for a router, else random codes."""
    if kind == F32:
        return rng.standard_normal(shape, np.float32) * np.float32(2 * HIDDEN**-0.5)
    *rows, columns = shape
    raw = rng.integers(0, 256, (*rows, columns // 256, BLOCK[kind]), np.uint8)
    if kind == Q4:  # d * sub * code - dmin * min: sub, min and code average 31, 31 and 7.5
        raw[..., 0:4] = np.array([1e-4, 7.5e-4], "<f2").view(np.uint8)
    else:  # d * sub * (code - 32): sub and code deviate by 74 and 18
        raw[..., 208:210] = np.array([1.5e-5 * deviation / 0.02], "<f2").view(np.uint8)
    return raw.reshape(*rows, -1)


def write(path: Path) -> None:
    """Write the model as a GGUF of architecture qwen3moe with a byte-level vocabulary."""
    writer, rng = gguf.GGUFWriter(path, "qwen3moe"), np.random.default_rng(0)
    for key, value in {
        "context_length": 4096, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": 3 * HIDDEN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "expert_count": EXPERTS, "expert_used_count": TOP_K,
        "expert_feed_forward_length": INNER, "vocab_size": VOCAB,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_float32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen3moe.rope.freq_base", 1e6)
    add_vocabulary(writer)
    for i in range(LAYERS):
        for name, width in (
            ("attn_norm", HIDDEN),
            ("ffn_norm", HIDDEN),
            ("attn_q_norm", HEAD_DIM),
            ("attn_k_norm", HEAD_DIM),
        ):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, (shape, kind) in matrices().items():
        # Rows of the embedding outweigh what attention adds to all alike, so that tokens choose experts of their own.
        deviation = 1.0 if name == "token_embd.weight" else 0.02
        writer.add_tensor(name, values(rng, shape, kind, deviation), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Add 256 tokens of a byte, one merge, and unused tokens up to VOCAB."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    spelled = [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]
    tokens = [*spelled, "ab", *(f"<unused{i}>" for i in range(VOCAB - 257))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * (VOCAB - 257))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCAB - 1)


# --- what bounds it --------------------------------------------------------------------------------


def layer_of(i: int, *, chosen: float) -> tuple[float, float]:
    """Bytes and weights of layer i, with the fraction `chosen` of its experts."""
    nbytes = weights = 0.0
    for name, (shape, kind) in matrices().items():
        if name.startswith(f"blk.{i}."):
            count = float(np.prod(shape)) * (chosen if len(shape) == 3 else 1)
            weights += count
            nbytes += count * (4 if kind == F32 else BLOCK[kind] / 256)
    return nbytes, weights


def ceiling(figure: Figure, gb_s: float, gops: float) -> float:
    """Tokens per second that reads or multiplications allow, whichever are fewer.

    Of a prompt's last layer only keys and values are computed for all tokens, the rest for the last token: both
    engines leave it out.
    """
    tokens = 1 if figure.kind == "decode" else figure.size
    rows = 1 if figure.kind == "prefill" else tokens  # with an output
    head, kv = VOCAB * HIDDEN, 2 * KV_HEADS * HEAD_DIM
    nbytes, weights = head * BLOCK[Q6] / 256, float(rows * head)
    for i in range(LAYERS):
        through = rows if i == LAYERS - 1 else tokens
        # Of the experts, if each token draws its own.
        nbytes += layer_of(i, chosen=1 - (1 - TOP_K / EXPERTS) ** through)[0]
        weights += through * layer_of(i, chosen=TOP_K / EXPERTS)[1] + (tokens - through) * kv * HIDDEN
    if figure.kind == "decode":
        nbytes += 2 * LAYERS * kv * (figure.size + figure.steps / 2)
    return tokens / max(nbytes / (gb_s * 1e9), 2 * weights / (gops * 1e9))


# --- the race --------------------------------------------------------------------------------------


def speed(child: Child, figure: Figure, threads: int, options: dict[str, Any]) -> float:
    """Run once; return tokens per second."""
    work = {"kind": figure.kind, "size": figure.size, "steps": figure.steps}
    took = child.ask("run", **work, threads=threads, options=options)
    return figure.tokens / took["seconds"]


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


def run(args: argparse.Namespace, path: Path, stack: ExitStack) -> dict[str, Any]:
    """Load the file in both, race every figure, print the table; return the record."""
    python = Path(args.llama_python) if args.llama_python else environment("llama_cpp")
    ours = stack.enter_context(Child(sys.executable, FREEHOLD, stops=True))
    theirs = stack.enter_context(Child(python, LLAMA_CPP, stops=True))
    loaded = [
        child.ask("load", path=str(path), context=2048, threads=args.threads) for child in (ours, theirs)
    ]
    before, figures = ceilings(ours, [args.threads]), []
    for figure in FIGURES:
        say(figure.name)
        figures.append(race(ours, theirs, figure, args.threads, args.rounds))
    limits = bounds(better(before, ceilings(ours, [args.threads])))
    print(f"{limits.read_gb_s:.1f} GB/s, {limits.int8_gops:.0f} GOPS; tokens/s, medians of {args.rounds}")
    print(f"{'':16}{'freehold':>10}{'llama.cpp':>11}{'ratio':>7}{'ceiling':>9}")
    for figure, result in zip(FIGURES, figures, strict=True):
        result["ceiling"] = ceiling(figure, limits.read_gb_s, limits.int8_gops)
        mine, peer = (statistics.median(result[name]) for name in ("freehold", "llama.cpp"))
        print(f"{figure.name:16}{mine:10.1f}{peer:11.1f}{result['ratio']:7.2f}{result['ceiling']:9.0f}")
    record = {"bench": "moe", **describe(path), "threads": args.threads, "ceilings": asdict(limits)}
    return record | {"versions": [facts["version"] for facts in loaded], "figures": figures}


def main() -> None:
    """Read the command line, make the file, race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--file", type=Path, help="where the model lies or is to be written (default: a temporary file)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--llama-python", help="an interpreter with llama-cpp-python (default: installed into .peers/)"
    )
    args = parser.parse_args()
    with ExitStack() as stack:
        path = args.file or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "moe.gguf"
        if not path.exists():
            say(f"writing {path}")
            write(path)
        print(json.dumps(run(args, path, stack)))


if __name__ == "__main__":
    main()
