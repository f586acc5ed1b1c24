"""Latent attention at DeepSeek-V2-Lite's layer shapes, beside llama.cpp: same file, same threads, in turns.

`python benches/engine/latent.py [--file PATH] [--threads 2] [--rounds 5] [--deep 16384] [--peer-deep 4096]`. The
file is made on first use: 3 layers of random weights (config.json of deepseek-ai/DeepSeek-V2-Lite: hidden 2048, 16
heads of 128 + 64, latent 512, 64 experts of 1408, top 6, two shared), in the types that a Q4_K_M file has where 256
does not divide a width: 1.1 GB. Both engines absorb k_b and v_b, so a step reads 576 halves a position and layer; the
bytes are counted from the cache's own pages. llama.cpp reads Lite's one query
projection only of files with 27 layers, so queries pass 1,536 inputs, as in DeepSeek-V2. A table goes to stdout, then
one JSON line.
Path: latent.py -> moe.race -> lib.peer.Child -> drivers/peer_freehold.py, drivers/peer_llama_cpp.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.engine.moe import BLOCK, Figure, Matrix, add_vocabulary, race, speed, values
from benches.lib.environments import FREEHOLD, LLAMA_CPP, environment
from benches.lib.machine import describe, say
from benches.lib.peer import Child
from freehold import _native as native
from freehold.layers import LayerSpec, kept_bytes

LAYERS, HIDDEN, VOCAB = 3, 2048, 8192
HEADS, NOPE, TURNED, VALUE, LATENT, QUERY = 16, 128, 64, 128, 512, 1536
EXPERTS, TOP_K, INNER, SHARED = 64, 6, 1408, 2
KINDS = gguf.GGMLQuantizationType
Q4, Q6, Q5, Q8, F32 = KINDS.Q4_K, KINDS.Q6_K, KINDS.Q5_0, KINDS.Q8_0, KINDS.F32
SMALL = {Q5: 22, Q8: 34}  # bytes of 32 weights
KEEPS = LayerSpec("latent", LAYERS, latent=LATENT, rope=TURNED)


def matrices() -> dict[str, Matrix]:
    """Name every matrix with its shape and type."""
    found: dict[str, Matrix] = {
        "token_embd.weight": ((VOCAB, HIDDEN), Q6),
        "output.weight": ((VOCAB, HIDDEN), Q6),
    }
    for i in range(LAYERS):
        down = Q8 if i % 2 else Q5
        of_layer: dict[str, Matrix] = {
            "attn_q_a": ((QUERY, HIDDEN), Q4),
            "attn_q_b": ((HEADS * (NOPE + TURNED), QUERY), Q4),
            "attn_kv_a_mqa": ((LATENT + TURNED, HIDDEN), Q4),
            "attn_k_b": ((HEADS, LATENT, NOPE), Q5),
            "attn_v_b": ((HEADS, VALUE, LATENT), Q4),
            "attn_output": ((HIDDEN, HEADS * VALUE), Q4),
            "ffn_gate_inp": ((EXPERTS, HIDDEN), F32),
            "ffn_gate_exps": ((EXPERTS, INNER, HIDDEN), Q4),
            "ffn_up_exps": ((EXPERTS, INNER, HIDDEN), Q4),
            "ffn_down_exps": ((EXPERTS, HIDDEN, INNER), down),
            "ffn_gate_shexp": ((SHARED * INNER, HIDDEN), Q4),
            "ffn_up_shexp": ((SHARED * INNER, HIDDEN), Q4),
            "ffn_down_shexp": ((HIDDEN, SHARED * INNER), Q6),
        }
        found |= {f"blk.{i}.{name}.weight": matrix for name, matrix in of_layer.items()}
    return found


def drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: KINDS) -> np.ndarray:
    """Draw a matrix: random codes with scales of some thousandths."""
    if kind in BLOCK or kind == F32:
        return values(rng, shape, kind, 1.0 if name == "token_embd.weight" else 0.02)
    *rows, columns = shape
    raw = rng.integers(0, 256, (*rows, columns // 32, SMALL[kind]), np.uint8)
    raw[..., 0:2] = np.array([2e-3 if kind == Q5 else 3e-4], "<f2").view(np.uint8)
    return raw.reshape(*rows, -1)


def write(path: Path) -> None:
    """Write the model as a GGUF of architecture deepseek2 with a byte-level vocabulary."""
    writer, rng = gguf.GGUFWriter(path, "deepseek2"), np.random.default_rng(0)
    for key, value in {
        "context_length": 32768, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": 10944,
        "attention.head_count": HEADS, "attention.head_count_kv": 1, "attention.key_length": LATENT + TURNED,
        "attention.value_length": LATENT, "attention.key_length_mla": NOPE + TURNED,
        "attention.value_length_mla": VALUE, "attention.kv_lora_rank": LATENT, "attention.q_lora_rank": QUERY,
        "rope.dimension_count": TURNED,
        "leading_dense_block_count": 0, "expert_count": EXPERTS, "expert_used_count": TOP_K,
        "expert_shared_count": SHARED, "expert_feed_forward_length": INNER, "expert_gating_func": 1,
        "vocab_size": VOCAB,
    }.items():  # fmt: skip
        writer.add_uint32(f"deepseek2.{key}", value)
    writer.add_float32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("deepseek2.rope.freq_base", 1e4)
    writer.add_float32("deepseek2.expert_weights_scale", 1.0)
    add_vocabulary(writer)
    for i in range(LAYERS):
        for name, width in (
            ("attn_norm", HIDDEN),
            ("ffn_norm", HIDDEN),
            ("attn_kv_a_norm", LATENT),
            ("attn_q_a_norm", QUERY),
        ):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, (shape, kind) in matrices().items():
        writer.add_tensor(name, drawn(rng, name, shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def figures(deep: int) -> tuple[Figure, ...]:
    """Return what is measured: prompts, steps at three depths, and eight streams."""
    depths = (16, 4096, deep)
    return (
        Figure("prefill 512", "prefill", 512),
        *(Figure(f"decode after {depth:,}", "decode", depth, 24) for depth in depths),
        Figure("8 streams", "batch", 8, 24),
    )


def read_a_step(depth: int) -> tuple[int, int]:
    """Bytes of the pages that a step at this depth reads, and of a latent and a key part of each position."""
    cache = native.KvCache([KEEPS.page] * LAYERS, 1, "f16")
    blocks = -(-depth // native.BLOCK_TOKENS)
    return blocks * cache.bytes_per_block, kept_bytes([KEEPS], blocks * native.BLOCK_TOKENS)


def alone(ours: Child, figure: Figure, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a depth that the peer would take an hour to fill."""
    speed(ours, figure, args.threads, {})
    return {
        "figure": figure.name,
        "freehold": [speed(ours, figure, args.threads, {}) for _ in range(args.rounds)],
    }


def run(args: argparse.Namespace, path: Path, stack: ExitStack) -> dict[str, Any]:
    """Load the file in both, race every figure, print the table; return the record."""
    python = Path(args.llama_python) if args.llama_python else environment("llama_cpp")
    ours = stack.enter_context(Child(sys.executable, FREEHOLD, stops=True))
    theirs = stack.enter_context(Child(python, LLAMA_CPP, stops=True))
    context = args.deep + 1024
    loaded = [
        child.ask("load", path=str(path), context=context, threads=args.threads) for child in (ours, theirs)
    ]
    print(f"tokens/s, medians of {args.rounds}\n{'':20}{'freehold':>10}{'llama.cpp':>11}{'ratio':>7}")
    found = []
    for figure in figures(args.deep):
        say(figure.name)
        if figure.size > args.peer_deep:
            found.append(alone(ours, figure, args))
            print(
                f"{figure.name:20}{statistics.median(found[-1]['freehold']):10.1f}{'-':>11}{'-':>7}",
                flush=True,
            )
            continue
        found.append(race(ours, theirs, figure, args.threads, args.rounds))
        mine, peer = (statistics.median(found[-1][name]) for name in ("freehold", "llama.cpp"))
        print(f"{figure.name:20}{mine:10.1f}{peer:11.1f}{found[-1]['ratio']:7.2f}", flush=True)
    pages, latents = read_a_step(args.deep)
    print(f"a step {args.deep:,} deep reads {pages:,} bytes of pages; latents and keys are {latents:,}")
    record = {
        "bench": "latent",
        **describe(path),
        "threads": args.threads,
        "page_bytes": pages,
        "latent_bytes": latents,
    }
    return record | {"versions": [facts["version"] for facts in loaded], "figures": found}


def main() -> None:
    """Read the command line, make the file, race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--file", type=Path, help="where the model lies or is to be written (default: a temporary file)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--deep", type=int, default=16384, help="the deepest cache, in tokens")
    parser.add_argument(
        "--peer-deep", type=int, default=4096, help="the deepest that llama.cpp is measured at"
    )
    parser.add_argument("--llama-python", help="an interpreter with llama-cpp-python (default: into .peers/)")
    args = parser.parse_args()
    with ExitStack() as stack:
        path = args.file or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "latent.gguf"
        if not path.exists():
            say(f"writing {path}")
            write(path)
        print(json.dumps(run(args, path, stack)))


if __name__ == "__main__":
    main()
