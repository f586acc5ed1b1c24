"""What a deployment may be called: nothing that a file, a shell or a terminal would read as more than a name."""

from __future__ import annotations

import pytest

from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.outgrow.contract import MOST_NAME, named
from freehold.outgrow.planning.facts import deployed
from tests.outgrow.test_facts import write_model


@pytest.mark.parametrize(
    "name", ["qwen3:8b", "meta/Llama-3.1-405B", "Mein Modell", "qwen+lora@2", "..", "模型"]
)
def test_names_that_people_give_are_taken(name):
    assert named(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " x", "x ", "a\nb", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\u202eb", "--trust-remote-code", "-x"),
        *("$(id)", "a`id`", "x" * (MOST_NAME + 1), "模" * 100, "\udcff"),
    ],
    ids=ascii,
)
def test_names_that_other_programs_would_read_as_more_are_refused(name):
    with pytest.raises(UsageError, match="the name"):
        named(name)


def test_the_name_of_a_folder_is_looked_at_as_a_given_one_is(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    folder = write_model(tmp_path / "m$(id)")
    with pytest.raises(UsageError, match="a shell fills in"):
        deployed(load_settings(), str(folder))
    assert deployed(load_settings(), str(folder), name="m").name == "m"
