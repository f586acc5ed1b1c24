"""One peer of embeddings.py in a process of its own: texts in, seconds or vectors out, a JSON line each.

Knows how each peer is loaded and asked; knows no workload. Run by embeddings.py in the peer's own environment:
`python benches/drivers/peer_embeddings.py PEER FOLDER THREADS`. A request {"texts": [...], "times": n} is answered
with seconds of each time, {"texts": [...], "vectors": true} with the vectors.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Encode = Callable[[list[str]], Any]


def freehold(folder: str, threads: int) -> tuple[Encode, str]:
    """Load ours."""
    import freehold as package
    from freehold import _native as native

    llm = package.load(folder, threads=threads)
    return lambda texts: llm.embed(texts).vectors, f"{package.__version__} {native.isa()}"


def sentence_transformers(folder: str, threads: int) -> tuple[Encode, str]:
    """Load sentence-transformers on torch: 512 positions, as ours, so that both read every token."""
    import sentence_transformers as package  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    model = package.SentenceTransformer(folder, device="cpu")
    model.max_seq_length = 512

    def encode(texts: list[str]) -> Any:
        with torch.inference_mode():
            return model.encode(texts, batch_size=max(len(texts), 1), show_progress_bar=False)

    return encode, f"{package.__version__} torch {torch.__version__}"


PEERS = {"freehold": freehold, "sentence-transformers": sentence_transformers}


def main() -> None:
    """Answer requests until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # a library that prints must not spoil the answers
    encode, version = PEERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("vectors"):
            told: Any = {"vectors": encode(asked["texts"]).tolist()}
        else:
            seconds = []
            for _ in range(asked["times"]):
                started = time.perf_counter()
                encode(asked["texts"])
                seconds.append(time.perf_counter() - started)
            told = {"seconds": seconds}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
