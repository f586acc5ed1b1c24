"""The oracle has every verb that native.Plan records, with the same parameters."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import freehold
from freehold.run.models.oracle.session import NumpyOps

STUB = Path(freehold.__file__).with_name("_native.pyi")
APART = {
    "__init__",
    "finish",
    "run",
    "hidden_width",
    "watch",
    "spent",
    "sections",
}  # what a plan has beside its verbs


def verbs() -> dict[str, list[str]]:
    """List the parameters of each op method of native.Plan, by the committed stub, which csrc/ops declares."""
    (plan,) = (
        c for c in ast.parse(STUB.read_text()).body if isinstance(c, ast.ClassDef) and c.name == "Plan"
    )
    methods = [m for m in plan.body if isinstance(m, ast.FunctionDef) and m.name not in APART]
    return {m.name: [a.arg for a in (*m.args.args, *m.args.kwonlyargs)] for m in methods}


def test_oracle_has_the_verbs_of_a_plan():
    public = {name for name, _ in inspect.getmembers(NumpyOps, inspect.isfunction) if name[0] != "_"}
    assert public == {*verbs(), "attend_within"}, "a plan has no such verb: a run gives its groups"


def test_oracle_verbs_take_a_plans_parameters():
    for name, parameters in verbs().items():
        assert list(inspect.signature(getattr(NumpyOps, name)).parameters) == parameters, name
