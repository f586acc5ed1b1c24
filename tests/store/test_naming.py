"""`MODEL+ADAPTER`: one meaning in every verb, a path or a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.run.store import Store
from freehold.run.store.naming import NamedModel, adapter_of, adapters_of, parted


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "c++").mkdir()
    (tmp_path / "c++" / "other.gguf").touch()
    return Store(Settings(home=tmp_path / "home"))


@pytest.mark.parametrize(
    ("given", "base", "adapter", "path"),
    [
        ("smollm2:135m", "smollm2:135m", "", None),
        ("smollm2:135m+mine", "smollm2:135m", "mine", "mine"),
        ("smollm2:135m+./mine", "smollm2:135m", "mine", "mine"),
        ("smollm2:135m+style=./mine", "smollm2:135m", "style", "mine"),
        ("smollm2:135m+c++/other.gguf", "smollm2:135m", "other", "c++/other.gguf"),
        ("smollm2:135m+served", "smollm2:135m", "served", None),
        ("org/repo:Q8_0+./mine", "org/repo:Q8_0", "mine", "mine"),
        ("./model.gguf+mine", "./model.gguf", "mine", "mine"),
        ("c++/other.gguf", "c++/other.gguf", "", None),
    ],
)
def test_behind_a_plus_stands_a_path_or_a_name(
    store: Store, given: str, base: str, adapter: str, path: str | None
):
    assert parted(store, given) == NamedModel(base, adapter, Path(path).absolute() if path else None)


def test_an_option_says_the_same_as_a_plus(store: Store):
    for text in ("mine", "./mine", "style=./mine", "served"):
        named = parted(store, f"smollm2:135m+{text}")
        assert adapter_of(text) == (named.adapter, named.path)


@pytest.mark.parametrize(
    "given", ["smollm2:135m+./nowhere", "smollm2:135m+style=./nowhere", "smollm2:135m+-=./mine"]
)
def test_an_adapter_that_is_not_there_is_refused(store: Store, given: str):
    with pytest.raises(UsageError, match=r"no adapter at nowhere|cannot be an adapter.s name"):
        parted(store, given)


def test_adapters_are_found_in_the_order_of_the_pluses(store: Store):
    model, adapters = adapters_of(store, "smollm2:135m+mine+style=./mine")
    assert model == "smollm2:135m" and [each.name for each in adapters] == ["mine", "style"]
    with pytest.raises(UsageError, match="no adapter at served"):
        adapters_of(store, "smollm2:135m+served")
