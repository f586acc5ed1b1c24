"""Sixty licence questions whose answers were written from the texts, before the program was asked.

`licence_cases.tsv` names the clause and the reason of each; its author had seen neither the catalogue's licences nor
the code that judges. `@firm` is a small firm with a product. A `note` says what the first run made of a case.
"""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from freehold.cli import main as cli_main

FIRM = (
    "--for commercial --monthly-users 50k --revenue 3M --monthly-revenue 250k --seat US --product --no-access "
    "--no-model-service --no-assistant --no-ships --no-modifies --no-distils"
)
TABLE = Path(__file__).with_name("licence_cases.tsv").read_text(encoding="utf-8")
CASES = list(csv.DictReader(TABLE.splitlines(), delimiter="\t"))
NOT_KNOWN = ("no model or licence named", "models under different licences")


def test_the_table_holds_sixty_cases_of_every_answer():
    answers = [case["expected"] for case in CASES]
    assert len(CASES) == 60 and {"allowed", "conditions", "refused", "unknown"} == set(answers)


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{n}-{case['name'] or 'own'}" for n, case in enumerate(CASES, 1)]
)
def test_the_answer_is_the_one_the_text_gives(
    case: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    names = [case["name"]] if case["name"] else []
    said = shlex.split(case["circumstances"].replace("@firm", FIRM))
    status = cli_main.run(["license", *names, *said, "--json"])
    out, err = capsys.readouterr()
    if status:
        assert case["expected"] == "unknown" and any(words in err for words in NOT_KNOWN), err
    else:
        (verdict,) = json.loads(out)["verdicts"]
        assert verdict["answer"] == case["expected"], verdict["reasons"]
