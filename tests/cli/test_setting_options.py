"""Options that settings declare: the command line and Python refuse the same values in the same words."""

from __future__ import annotations

import click
import pytest

from freehold.adapt.settings import (
    AdapterSettings,
    AlignSettings,
    DistilSettings,
    FinetuneSettings,
    ReinforceSettings,
)
from freehold.base.errors import UsageError
from freehold.base.options import FieldOption, options_of
from freehold.cli import main
from freehold.cli.options import setting_options

NEEDED = {ReinforceSettings: {"steps": 1}}


def outside(declared: FieldOption) -> list[object]:
    """Values that an option refuses: beyond each limit, none of the choices, NaN."""
    if declared.choices:
        return ["ppo"]
    if declared.kind in ("bool", "str"):
        return []
    values: list[object] = []
    values += [limit - 1 for limit in (declared.least, declared.above) if limit is not None]
    values += [limit + 1 for limit in (declared.most, declared.below) if limit is not None]
    values += [limit for limit in (declared.above, declared.below) if limit is not None]
    return values if declared.kind.startswith("int") else [*map(_number, values), float("nan")]


def _number(value: object) -> object:
    return float(value) if isinstance(value, int) else value


CASES = [
    (kind, name, value)
    for kind in (AlignSettings, FinetuneSettings, DistilSettings, ReinforceSettings)
    for name, declared in options_of(kind).items()
    for value in outside(declared)
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_python_refuses_what_the_command_line_refuses_in_the_same_words(
    kind: type[AdapterSettings], name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        kind(**{**NEEDED.get(kind, {}), name: value})

    @click.command()
    @setting_options(kind, name)
    def command(**options: object) -> None:
        raise AssertionError(f"{options} passed")

    with pytest.raises(click.BadParameter) as by_click:
        command.main([f"{command.params[0].opts[0]}={value}"], standalone_mode=False)
    message, _ = main._usage(by_click.value)
    words = refused.value.message.removeprefix(f"{name}: ").replace(repr(value), str(value))
    assert message.partition(": ")[2].replace(f"'{value}'", str(value)) == words


@pytest.mark.parametrize("kind", [AlignSettings, FinetuneSettings, DistilSettings, ReinforceSettings])
def test_a_default_is_in_its_own_range(kind: type[AdapterSettings]) -> None:
    settings = kind(**NEEDED.get(kind, {}))
    assert all(d.required or d.default == getattr(settings, name) for name, d in options_of(kind).items())
