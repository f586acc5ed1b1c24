"""What the drivers of llama.cpp and of ik_llama.cpp share: their C APIs differ in a few calls only.

Knows batches, positions and sequences; knows no parameter of either library.
Path: peers.py -> driver.main -> LlamaDriver -> the ctypes module of peer_llama_cpp.py or peer_ik.py
"""

from __future__ import annotations

import ctypes
import json
from abc import abstractmethod
from typing import Any

import numpy as np

from benches.lib.driver import SHORT, Clock, Driver, Took, physical_cores, sample_prompt

BATCH = 512
SEQUENCES = 16
SEQUENCE_ROOM = 128  # tokens a sequence of a batch may hold: SHORT, and those it decodes


def used_features(system_info: bytes) -> str:
    """Name what a library says it uses of the processor: the parts of its system info that end in "= 1"."""
    parts = system_info.decode().split("|")
    return " ".join(part.split("=")[0].strip() for part in parts if part.strip().endswith("= 1"))


def set_sizes(params: Any, room: int, sequences: int, threads: int) -> None:
    """Fill the fields of context parameters that both libraries have."""
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = room, BATCH, BATCH, sequences
    params.n_threads = params.n_threads_batch = threads


class Context:
    """One llama_context and the batch it is fed by; knows what each of its sequences holds."""

    def __init__(self, driver: LlamaDriver, pointer: Any) -> None:
        self._driver, self._api, self.pointer = driver, driver.api, pointer
        self._batch = self._api.llama_batch_init(BATCH, 0, 1)
        self._prompts: dict[int, list[int]] = {}
        self.threads = 1

    def feed(self, ids: list[int], positions: list[int], seqs: list[int], wanted: list[bool]) -> None:
        """Run at most BATCH tokens; logits are kept of those wanted."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, row in enumerate(zip(ids, positions, seqs, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i] = row
            batch.n_seq_id[i] = 1
        if code := self._api.llama_decode(self.pointer, batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def prompt(self, ids: list[int], seq: int = 0, every_row: Any = None) -> None:
        """Run a prompt in an empty sequence; `every_row` gets each part's rows of logits."""
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            count = len(part)
            last = [every_row is not None] * (count - 1) + [True]
            self.feed(part, list(range(first, first + count)), [seq] * count, last)
            if every_row:
                every_row([self.row(i) for i in range(count)])

    def row(self, index: int) -> np.ndarray:
        """View the logits of row `index` of the last batch: float32 [V]."""
        pointer = self._api.llama_get_logits_ith(self.pointer, index)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, shape=(self._driver.n_vocab,))

    def clear(self) -> None:
        """Empty the cache."""
        self._driver.forget(self.pointer, -1, 0)
        self._prompts.clear()

    def rewind(self, prompts: list[list[int]]) -> None:
        """Leave sequence i holding exactly prompts[i]; computes only those it does not hold yet."""
        held = self._prompts
        if not held or any(held.get(seq, prompt) != prompt for seq, prompt in enumerate(prompts)):
            self.clear()
        for seq in [seq for seq in held if seq >= len(prompts)]:
            self._driver.forget(self.pointer, seq, 0)
            del held[seq]
        for seq, prompt in enumerate(prompts):
            if seq in held and self._driver.forget(self.pointer, seq, len(prompt)):
                continue
            self._driver.forget(self.pointer, seq, 0)  # a recurrent state cannot go back
            self._fill(prompt, seq)
            held[seq] = prompt

    def _fill(self, prompt: list[int], seq: int) -> None:
        """Run a prompt untimed, with all threads."""
        self._driver.set_threads(self.pointer, physical_cores())
        self.prompt(prompt, seq)
        self._driver.set_threads(self.pointer, self.threads)

    def steps(self, prompts: list[list[int]], count: int) -> Took:
        """Time `count` greedy steps of all sequences together, after their prompts."""
        self.rewind(prompts)
        seqs = list(range(len(prompts)))
        ids = [prompt[-1] for prompt in prompts]
        clock = Clock()
        for step in range(count):
            self.feed(ids, [len(prompt) + step for prompt in prompts], seqs, [True] * len(seqs))
            ids = [int(self.row(i).argmax()) for i in seqs]
        return clock.took()


class LlamaDriver(Driver):
    """A loaded model; a context for each kind of work and set of options that was asked for."""

    name: str
    api: Any

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.contexts: dict[str, Context] = {}
        self.context: Any = None
        self.vocab: Any = None
        self.n_vocab = 0
        self._path, self._room = "", 0
        self._salt = 0
        self.api.llama_backend_init()

    @abstractmethod
    def version(self) -> str:
        """Name the package, its version and the processor features it uses."""

    @abstractmethod
    def open_model(self, path: bytes, options: dict[str, Any]) -> Any:
        """Load a file; None if it cannot."""

    @abstractmethod
    def open_context(
        self, model: Any, room: int, sequences: int, threads: int, options: dict[str, Any]
    ) -> Any:
        """Make a context; None if it cannot."""

    @abstractmethod
    def forget(self, context: Any, seq: int, first: int) -> bool:
        """Drop what sequence `seq` (-1: all) holds from position `first` on; False where that cannot be done."""

    @abstractmethod
    def set_threads(self, context: Any, threads: int) -> None:
        """Compute with so many threads from now on."""

    def load(self, path: str, context: int, threads: int | None = None, **options: Any) -> dict[str, Any]:
        """Load the model and make its first context, which checks that the file can be run."""
        self._path, self._room = path, context
        self.use("prefill", threads, options)
        self.vocab = self.api.llama_model_get_vocab(self.models[_model_key(options)])
        self.n_vocab = self.api.llama_vocab_n_tokens(self.vocab)
        facts = {"name": self.name, "version": self.version(), "weights": "as in the file"}
        return {**facts, "vocab": self.n_vocab, "threads": threads or physical_cores(), "trials": self.trials}

    def use(self, kind: str, threads: int | None, options: dict[str, Any]) -> None:
        """Switch to the context of these options, made on first use, and set its threads."""
        many = kind == "batch"
        key = json.dumps([many, options], sort_keys=True)
        threads = threads or physical_cores()
        if key not in self.contexts:
            room, sequences = (SEQUENCES * SEQUENCE_ROOM, SEQUENCES) if many else (self._room, 1)
            pointer = self.open_context(self._model(options), room, sequences, threads, options)
            if not pointer:
                raise OSError(f"{self.name} cannot make a context of {room} tokens with {options}")
            self.contexts[key] = Context(self, pointer)
        self.context = self.contexts[key]
        self.context.threads = threads
        self.set_threads(self.context.pointer, threads)

    def _model(self, options: dict[str, Any]) -> Any:
        key = _model_key(options)
        if key not in self.models:
            self.models[key] = self.open_model(self._path.encode(), options)
            if not self.models[key]:
                raise OSError(f"{self.name} cannot load {self._path}")
        return self.models[key]

    def prefill(self, tokens: int) -> Took:
        """Time a prompt in an empty cache."""
        self._salt += 1
        self.context.clear()
        clock = Clock()
        self.context.prompt(sample_prompt(tokens, self.n_vocab, self._salt))
        self.context.row(-1)
        return clock.took()

    def decode(self, depth: int, steps: int) -> Took:
        """Time greedy steps of one sequence."""
        return self.context.steps([sample_prompt(depth, self.n_vocab)], steps)

    def batch(self, sequences: int, steps: int) -> Took:
        """Time greedy steps of several sequences."""
        return self.context.steps([sample_prompt(SHORT, self.n_vocab, i) for i in range(sequences)], steps)

    def first(self, text: str) -> None:
        """Compute the first token after `text`."""
        ids = self.tokenize(text, special=False)["ids"]
        self.context.clear()
        self.context.prompt(ids)
        self.context.row(-1).argmax()

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        self.context.clear()
        with open(out, "wb") as file:
            self.context.prompt(ids, every_row=lambda rows: [file.write(row.tobytes()) for row in rows])
        return {"rows": len(ids), "vocab": self.n_vocab}

    def tokenize(self, text: str, special: bool) -> dict[str, Any]:
        """Turn text into ids, special tokens parsed or not, with the model's own BOS rule."""
        raw = text.encode()
        ids = (self.api.llama_token * (len(raw) + 8))()
        count = self.api.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, special)
        return {"ids": list(ids[:count])}


def _model_key(options: dict[str, Any]) -> str:
    """Options that change how weights lie, and so need a copy of the model."""
    return json.dumps({name: options[name] for name in ("repack",) if name in options})
