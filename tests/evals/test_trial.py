"""Running cases on scripted models: kept answers, going on after a stop, and judging by a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.evals.samples import Samples, read
from freehold.adapt.evals.trial import FOLDER, TrialModel, kept, run
from freehold.base.types import ChatModel
from freehold.serve.fake import FakeModel

ONE, TWO = TrialModel("one", "1" * 64), TrialModel("two", "2" * 64)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"say {word}", "exact": word} for word in ("a", "b", "c")]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read(path)


class Opened:
    """Opens scripted models, and counts what was asked of each."""

    def __init__(self, **scripts: list[str | BaseException]) -> None:
        self.scripts, self.models = scripts, []

    def __call__(self, name: str) -> ChatModel:
        self.models.append(FakeModel(self.scripts[name], name=name))
        return self.models[-1]

    @property
    def asked(self) -> list[str]:
        return [str(c.messages[-1].content) for m in self.models for c in m.calls]


def test_every_model_gets_the_same_cases_greedily(samples: Samples, tmp_path: Path):
    opened = Opened(one=["a", "b", "x"], two=["a", "x", "x"])
    seen: list[tuple[str, int, int]] = []
    found = run(samples, [ONE, TWO], tmp_path, opened, on_case=lambda *at: seen.append(at))
    assert [r.marks for r in found] == [(True, True, False), (True, False, False)]
    assert opened.asked == ["say a", "say b", "say c"] * 2
    assert all(m.closed for m in opened.models)
    assert all(c.sampling and c.sampling.temperature == 0 for m in opened.models for c in m.calls)
    assert seen[-1] == ("two", 3, 3)


def test_a_stopped_run_goes_on_where_it_was(samples: Samples, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(samples, [ONE], tmp_path, Opened(one=["a", KeyboardInterrupt()]))
    opened = Opened(one=["b", "c"])
    (found,) = run(samples, [ONE], tmp_path, opened)
    assert found.marks == (True, True, True) and opened.asked == ["say b", "say c"]
    again = Opened()
    assert run(samples, [ONE], tmp_path, again) == [found] and not again.models


def test_a_line_that_was_cut_short_is_answered_again(samples: Samples, tmp_path: Path):
    run(samples, [ONE], tmp_path, Opened(one=["a", "b", "c"]))
    (path,) = (tmp_path / FOLDER).iterdir()
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(path.read_bytes()[:-20])
    opened = Opened(one=["c"])
    assert run(samples, [ONE], tmp_path, opened)[0].marks == (True, True, True)
    assert opened.asked == ["say c"]


@pytest.mark.parametrize(
    "junk", ["{", "[]", '{"case": 3}', '{"case": "x", "text": "", "passed": 7}', "[" * 99_999]
)
def test_damaged_lines_count_as_not_there(samples: Samples, tmp_path: Path, junk: str):
    run(samples, [ONE], tmp_path, Opened(one=["a", "b", "c"]))
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_text(junk + "\n" + path.read_text())
    assert run(samples, [ONE], tmp_path, Opened())[0].marks == (True, True, True)


def test_what_is_kept_is_found_by_the_models_digest(samples: Samples, tmp_path: Path):
    run(samples, [ONE], tmp_path, Opened(one=["a", "x", "c"]))
    (found,) = kept(tmp_path, ONE.digest)
    assert (found.samples, found.cases, found.answered, found.passed) == ("mine.jsonl", 3, 3, 2)
    assert kept(tmp_path, TWO.digest) == []


def test_a_model_judges_after_all_answers_are_there(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "hello", "judge": "polite"}))
    samples = read(path, "grader@3")
    opened = Opened(one=["hi"], two=["go away"], grader=['{"pass": true}', '{"pass": false}'])
    found = run(samples, [ONE, TWO], tmp_path, opened, judge="grader")
    assert [m.name for m in opened.models] == ["one", "two", "grader"]
    assert [r.marks for r in found] == [(True,), (False,)]
    assert [r.marks for r in run(samples, [ONE, TWO], tmp_path, Opened(), judge="grader")] == [
        (True,),
        (False,),
    ]
