"""Tensors of a file that are not computed are left out, and a note says so: a family's own, and towers of pictures.

Knows names; knows no values and no format.
Path: bind.read_source -> leave_out, text_half -> Source.notes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeVar

from freehold.errors import BadModelFile

_OTHER_HALVES = re.compile(
    r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision|embed_audio)\..*"
)

T = TypeVar("T")
Rule: TypeAlias = tuple[str, str]  # a regular expression that names begin with, and what to say


def leave_out(tensors: Mapping[str, T], rules: Iterable[Rule]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the tensors that no rule names, and the notes of the rules that named one."""
    left, notes = dict(tensors), []
    for pattern, note in rules:
        kept = {name: tensor for name, tensor in left.items() if not re.match(pattern, name)}
        if len(kept) < len(left):
            notes.append(note)
        left = kept
    return left, tuple(notes)


def plain_name(name: str) -> str:
    """Return what a tensor of a multimodal model's text half is called in a model of text alone."""
    return name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)


def text_half(tensors: Mapping[str, T], notes: tuple[str, ...]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Give a multimodal file's text tensors their plain names; leave the vision parts out, and say so."""
    out: dict[str, T] = {}
    for name, tensor in tensors.items():
        if _OTHER_HALVES.fullmatch(name):
            continue
        if (plain := plain_name(name)) in out:
            raise BadModelFile(f"tensor {plain} occurs twice, in the text half and beside it")
        out[plain] = tensor
    note = "the vision parts of this model are left out; it reads text only"
    return out, (*notes, note) if len(out) < len(tensors) else notes
