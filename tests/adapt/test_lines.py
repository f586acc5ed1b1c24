"""Lines of strangers: keys that occur twice and files without an end are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.adapt import lines
from freehold.adapt.finetune import read_samples
from freehold.adapt.lines import read_lines
from freehold.base.errors import UsageError


def test_a_key_that_occurs_twice_is_refused_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b", "completion": "c"}\n')
    with pytest.raises(UsageError, match="line 1: 'prompt' occurs twice"):
        read_samples(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
def test_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 16)
    with pytest.raises(UsageError, match="more than 65,536 bytes"):
        read_lines(Path("/dev/zero"), lambda number, table: table, "{}")


def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path) -> None:
    """No tokenizer takes it: without the line it is hard to find hours later."""
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "\\ud83d\\ude00"}\n{"prompt": "b", "completion": "\\ud800"}\n'
    )
    with pytest.raises(UsageError, match="line 2: completion holds half a surrogate pair"):
        read_samples(path)
