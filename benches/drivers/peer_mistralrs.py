"""mistral.rs's driver; runs in an environment with mistralrs and NumPy.

Its Python face takes text, so prompts are words and its own token counts are believed, as are the times it
reports. Its threads are fixed when the process starts: it is measured at its own choice only.
Path: peers.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mistralrs  # pyright: ignore[reportMissingImports]

from benches.lib.driver import SHORT, Clock, Driver, Took, main, physical_cores

WORDS = ["river", "stone", "garden", "window", "paper", "engine", "silver", "market", "winter", "letter"]


class MistralRs(Driver):
    """One runner."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._salt = 0

    def load(self, path: str, context: int, threads: int | None = None) -> dict[str, Any]:
        """Load the file."""
        file = Path(path)
        which = mistralrs.Which.GGUF(str(file.parent), file.name)
        self._runner = mistralrs.Runner(which)
        facts = {"name": "mistral.rs", "version": f"mistralrs {version('mistralrs')}", "vocab": 0}
        facts |= {"weights": "as in the file", "threads": physical_cores(), "fixed_threads": True}
        return {**facts, "trials": self.trials}

    def use(self, kind: str, threads: int | None, options: dict[str, Any]) -> None:
        """Nothing can be switched."""

    def prefill(self, tokens: int) -> Took:
        """Time a prompt, scaled to the tokens wanted where its words made some more or fewer."""
        self._salt += 1
        return self._timed(lambda: self._ask(tokens, 1, f"{self._salt} "), "prompt", tokens)

    def decode(self, depth: int, steps: int) -> Took:
        """Time steps after a prompt."""
        return self._timed(lambda: self._ask(depth, steps, ""), "completion", steps)

    def batch(self, sequences: int, steps: int) -> Took:
        """Time steps of one answer; there is no way to more."""
        if sequences > 1:
            raise RuntimeError("its Python face answers one request at a time")
        return self.decode(SHORT, steps)

    def _timed(self, ask: Any, part: str, tokens: int) -> Took:
        clock = Clock()
        usage = ask()
        took = clock.took()
        seconds = getattr(usage, f"total_{part}_time_sec") * tokens / getattr(usage, f"{part}_tokens")
        return Took(seconds, took.cpu_seconds * seconds / took.seconds)

    def _ask(self, tokens: int, steps: int, head: str) -> Any:
        words = (WORDS[(i * 7) % len(WORDS)] for i in range(tokens))
        request = mistralrs.CompletionRequest(
            head + " ".join(words), "default", max_tokens=steps, temperature=0.0, ignore_eos=True
        )
        return self._runner.send_completion_request(request).usage

    def first(self, text: str) -> None:
        """Compute the first token after `text`."""
        request = mistralrs.CompletionRequest(text, "default", max_tokens=1, temperature=0.0)
        self._runner.send_completion_request(request)


if __name__ == "__main__":
    main(MistralRs)
