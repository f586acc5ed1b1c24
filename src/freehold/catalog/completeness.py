"""Lists what an entry of the catalogue lacks: the facts that its size and fit need.

An entry may lack one of them only where `not_published` names the source that was looked through. Knows facts of a
model; knows no file and no network.
Path: freehold models lint, tests -> gaps.
"""

from __future__ import annotations

from collections.abc import Callable

from freehold.catalog.model import Model

_APART = 0.08  # of its exact weights that a name's round number may be off


def gaps(model: Model) -> tuple[str, ...]:
    """Return what is missing or contradicts itself, a line each; empty for a complete entry."""
    excused = {key for key, _ in model.not_published}
    missing = [
        f"{key} is missing, and not_published names no source that was looked through"
        for key, told in _NEEDED.items()
        if not told(model) and key not in excused
    ]
    stale = [f"not_published names {key}, which is known" for key in sorted(excused) if getattr(model, key)]
    return (*missing, *stale, *_contradictions(model))


# fact -> whether an entry has it
_NEEDED: dict[str, Callable[[Model], bool]] = {
    "layers": lambda m: bool(m.layers),
    "context": lambda m: m.context > 0,
    "parameters": lambda m: m.parameters > 0 or m.tensor_bytes > 0,
    "native": lambda m: bool(m.native),
    "dimensions": lambda m: m.role != "embedder" or m.dimensions > 0,
    "experts": lambda m: m.kind != "moe" or m.experts > 0,
}


def _contradictions(model: Model) -> list[str]:
    contradictions = []
    exact, whole = model.text_parameters or model.parameters, model.parameters
    if model.text_parameters > whole > 0:
        contradictions.append(f"text_parameters = {model.text_parameters:,} exceed parameters = {whole:,}")
    if model.active_parameters > exact > 0:
        contradictions.append(f"active_parameters = {model.active_parameters:,} exceed {exact:,}")
    told = model.params_b * 1e9
    if whole and not (exact * (1 - _APART) <= told <= whole * (1 + _APART)):
        contradictions.append(f"params_b = {model.params_b} is far from {exact / 1e9:.4g} counted")
    if model.vocab and model.hidden and exact and model.vocab * model.hidden > exact:
        contradictions.append(
            f"a table of {model.vocab:,} x {model.hidden:,} has more weights than the model"
        )
    return contradictions
