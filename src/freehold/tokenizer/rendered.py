"""A rendered chat: its text, and a twin in which only the template can have written a control token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a chat template produced.

    `text` is what the model reads, byte for byte what `transformers` renders. `guarded` has the same
    length; where messages or tools spelled a control token, one of its characters is replaced there, so a
    control token found in `guarded` is the template's own. The two are equal for ordinary messages.
    """

    text: str
    guarded: str
    in_thinking: bool = False  # the prompt ends inside an opened thinking block

    def __str__(self) -> str:
        return self.text
