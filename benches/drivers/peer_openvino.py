"""OpenVINO GenAI's driver; runs in an environment with openvino-genai and NumPy.

Its pipeline reads GGUF itself and converts on load. It keeps no prefix between calls, so a depth is filled
each time, untimed. Threads are a property of a pipeline: one is made for each count asked for.
Path: peers.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]
import openvino_genai as genai  # pyright: ignore[reportMissingImports]

from benches.lib.driver import SHORT, Clock, Driver, Took, main, physical_cores, sample_prompt


class OpenVino(Driver):
    """A pipeline for each thread count."""

    def __init__(self) -> None:
        self._pipes: dict[int, Any] = {}
        self._path = ""
        self._vocab = 0
        self._salt = 0

    def load(self, path: str, context: int, threads: int | None = None) -> dict[str, Any]:
        """Load and convert the file."""
        self._path = path
        self.use("prefill", threads, {})
        self._vocab = len(self._pipe.get_tokenizer().get_vocab())
        facts = {"name": "OpenVINO", "version": f"openvino-genai {genai.__version__}"}
        facts |= {"weights": "as its GGUF reader converts them", "vocab": self._vocab}
        return {**facts, "threads": threads or physical_cores(), "trials": self.trials}

    def use(self, kind: str, threads: int | None, options: dict[str, Any]) -> None:
        """Switch to the pipeline with so many threads."""
        count = threads or physical_cores()
        if count not in self._pipes:
            self._pipes[count] = genai.LLMPipeline(self._path, "CPU", INFERENCE_NUM_THREADS=count)
        self._pipe = self._pipes[count]

    def prefill(self, tokens: int) -> Took:
        """Time a prompt, its first token included."""
        self._salt += 1
        clock = Clock()
        self._generate([sample_prompt(tokens, self._vocab, self._salt)], 1)
        return clock.took()

    def decode(self, depth: int, steps: int) -> Took:
        """Time steps after a prompt."""
        return self._steps([sample_prompt(depth, self._vocab)], steps)

    def batch(self, sequences: int, steps: int) -> Took:
        """Time steps of a batch."""
        return self._steps([sample_prompt(SHORT, self._vocab, i) for i in range(sequences)], steps)

    def _steps(self, prompts: list[list[int]], steps: int) -> Took:
        clock = Clock()
        metrics = self._generate(prompts, steps + 1).perf_metrics
        took = clock.took()
        seconds = (metrics.get_generate_duration().mean - metrics.get_ttft().mean) / 1000
        return Took(seconds, took.cpu_seconds * seconds / took.seconds)

    def _generate(self, prompts: list[list[int]], tokens: int) -> Any:
        ids = np.array(prompts, dtype=np.int64)
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        return self._pipe.generate(inputs, config)

    def first(self, text: str) -> None:
        """Compute the first token after `text`, to text."""
        self._pipe.generate(text, max_new_tokens=1, do_sample=False)


if __name__ == "__main__":
    main(OpenVino)
