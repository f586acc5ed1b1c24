"""A model written as the Modelfile that would make it again, and its parameters as aligned lines.

Knows records and cards; knows no route. Clients parse both as text: Continue reads num_ctx and stop.
Path: models.show -> modelfile, parameter_lines
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freehold.server.ollama.cards import Card
from freehold.store import Listed
from freehold.store.overlays import Overlay
from freehold.store.parameters import as_lines

_NAMES = {"repetition_penalty": "repeat_penalty", "penalty_window": "repeat_last_n"}
_WIDTH = 31  # of the names' column, where Ollama has it


def parameter_lines(card: Card, overlay: Overlay | None) -> str:
    """Return what is used where a request says nothing: the model's own or Freehold's, under the overlay's."""
    rows = as_lines({**_defaults(card), **(overlay.parameters if overlay else {})})
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in rows)


def modelfile(listed: Listed, card: Card, overlay: Overlay | None) -> str:
    """Write the Modelfile."""
    lines = [f"# {listed.name} as freehold create reads it", f"FROM {listed.base or listed.name}"]
    if overlay is None:
        return "\n".join(lines) + "\n"
    texts = {"TEMPLATE": overlay.template, "SYSTEM": overlay.system, "ADAPTER": Path(overlay.adapter).name}
    lines += [f"{word} {_quoted(text)}" for word, text in texts.items() if text]
    lines += [f"PARAMETER {name} {value}" for name, value in as_lines(overlay.parameters)]
    lines += [f"MESSAGE {role} {_quoted(text)}" for role, text in overlay.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in overlay.licence]
    return "\n".join(lines) + "\n"


def _defaults(card: Card) -> Mapping[str, object]:
    """Return the sampling a model is used with, under Ollama's names."""
    return {_NAMES.get(name, name): value for name, value in card.sampling.items()}


def _quoted(text: str) -> str:
    if '"""' not in text:
        return f'"""{text}"""'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
