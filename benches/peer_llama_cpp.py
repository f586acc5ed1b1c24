"""llama.cpp as a child process: one JSON request a line on stdin, one JSON answer a line on stdout.

Runs in the peers' own environment (llama-cpp-python and NumPy; nothing of Freehold), on llama.cpp's C API.
Path: peers.py, quality.py or tests/vectors/check_gguf.py -> peer.Child -> this file.

Requests, by "op":
    load      path, threads, context, kv ("f16" | "f32"), logits (all rows)  -> name, version, vocab, load_s
    prefill   tokens                         -> seconds for a prompt of that many tokens, in an empty context
    decode    prompt, tokens                 -> seconds for so many greedy tokens after such a prompt
    logits    ids, out                       -> writes float32 [T, V] to the file `out`
    tokenize  text, special                  -> ids
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import llama_cpp as ll  # pyright: ignore[reportMissingImports]
import numpy as np

from benches.peer import sample_prompt, serve

BATCH = 512
KV_TYPES = {"f16": ll.GGML_TYPE_F16, "f32": ll.GGML_TYPE_F32}


class Peer:
    """A loaded model and its one context; every timed request starts from an empty cache."""

    def __init__(self, path: str, threads: int, context: int, kv: str = "f16", logits: bool = False) -> None:
        start = time.perf_counter()
        model_params = ll.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise OSError(f"llama.cpp cannot load {path}")
        self.context = ll.llama_init_from_model(self.model, _context_params(threads, context, kv, logits))
        if not self.context:
            raise OSError(f"llama.cpp cannot make a context of {context} tokens")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        self.load_s = time.perf_counter() - start
        self._batch = ll.llama_batch_init(BATCH, 0, 1)

    def clear(self) -> None:
        """Empty the cache."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def feed(self, ids: list[int], position: int, every_row: bool = False) -> None:
        """Run at most BATCH tokens; logits are kept of the last one, or of all."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every_row or i == len(ids) - 1
        if code := ll.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def row(self, index: int) -> np.ndarray:
        """View the logits of row `index` of the last batch: float32 [V]."""
        pointer = ll.llama_get_logits_ith(self.context, index)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, shape=(self.n_vocab,))

    def prefill(self, tokens: int) -> float:
        """Time a prompt of `tokens` tokens, in seconds."""
        ids = sample_prompt(tokens, self.n_vocab)
        self.clear()
        start = time.perf_counter()
        for i in range(0, tokens, BATCH):
            self.feed(ids[i : i + BATCH], i)
        self.row(-1)
        return time.perf_counter() - start

    def decode(self, prompt: int, tokens: int) -> float:
        """Time `tokens` greedy steps after a prompt of `prompt` tokens, in seconds."""
        self.prefill(prompt)
        start = time.perf_counter()
        for i in range(tokens):
            self.feed([int(self.row(-1).argmax())], prompt + i)
        self.row(-1)
        return time.perf_counter() - start

    def logits(self, ids: list[int], out: str) -> None:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        self.clear()
        with open(out, "wb") as file:
            for i in range(0, len(ids), BATCH):
                part = ids[i : i + BATCH]
                self.feed(part, i, every_row=True)
                for row in range(len(part)):
                    file.write(self.row(row).tobytes())

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Turn text into ids, special tokens parsed or not, with the model's own BOS rule."""
        raw = text.encode()
        ids = (ll.llama_token * (len(raw) + 8))()
        count = ll.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, special)
        return list(ids[:count])


def _context_params(threads: int, context: int, kv: str, logits: bool) -> Any:
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = context, BATCH, BATCH
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = KV_TYPES[kv]
    if logits and hasattr(params, "n_outputs_max"):
        params.n_outputs_max = params.n_outputs_max_per_seq = BATCH
    if kv == "f32":  # flash attention would round the keys to f16
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


class Handler:
    """The requests, by name."""

    def __init__(self) -> None:
        quiet = ll.llama_log_callback(lambda _level, _text, _data: None)
        self._quiet = quiet  # llama.cpp keeps the pointer
        ll.llama_log_set(quiet, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.peer: Any = None

    def load(self, **options: Any) -> dict[str, Any]:
        """Load a model and make its context; `load_s` is the seconds both took."""
        self.peer = Peer(**options)
        version = f"llama-cpp-python {ll.__version__}"
        return {
            "name": "llama.cpp",
            "version": version,
            "vocab": self.peer.n_vocab,
            "load_s": self.peer.load_s,
        }

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Time a prompt."""
        return {"seconds": self.peer.prefill(tokens)}

    def decode(self, prompt: int, tokens: int) -> dict[str, Any]:
        """Time greedy steps."""
        return {"seconds": self.peer.decode(prompt, tokens)}

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write all rows of logits to a file."""
        self.peer.logits(ids, out)
        return {"rows": len(ids), "vocab": self.peer.n_vocab}

    def tokenize(self, text: str, special: bool) -> dict[str, Any]:
        """Turn text into ids."""
        return {"ids": self.peer.tokenize(text, special)}


if __name__ == "__main__":
    serve(Handler())
