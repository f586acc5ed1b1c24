"""A prompt router is admitted by tasks it has not seen, or not at all."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from freehold.base.errors import UsageError
from freehold.route.router.admission import AnsweredTable, read_table, verdict
from freehold.route.router.admission.verdict import (
    LENGTH,
    ORACLE,
    OWN,
    RANDOM,
    TASK,
    RouterVerdict,
    TermCounts,
    admit,
    areas,
    curve,
    few_labels,
    order,
    resamples,
    spread,
    task_means,
)

MMLU = Path(__file__).parent / "data" / "mmlu-dev.csv.gz"
# Measured on this file with scikit-learn and NumPy in another program: APGR with its interval, CPT50, CPT80, AIQ.
PUBLISHED = {
    RANDOM: (0.511, 0.488, 0.531, 48.1, 78.7, 0.7708),
    LENGTH: (0.556, 0.530, 0.576, 40.5, 77.0, 0.7761),
    "TF-IDF + logistic": (0.580, 0.558, 0.601, 35.9, 71.2, 0.7789),
    TASK: (0.602, 0.578, 0.623, 34.7, 68.1, 0.7816),
}


@pytest.fixture(scope="module")
def mmlu() -> AnsweredTable:
    return read_table(MMLU)


@pytest.fixture(scope="module")
def judged(mmlu: AnsweredTable) -> RouterVerdict:
    return admit(mmlu)


def named(figures, name):
    return next(f for f in figures if f.name == name)


def test_curves_without_training_equal_those_published(mmlu: AnsweredTable):
    fold = np.random.default_rng(3).integers(0, 5, mmlu.rows)
    given = {
        RANDOM: np.random.default_rng(5).random(mmlu.rows),
        LENGTH: np.array([len(p) for p in mmlu.prompts], dtype=float),
        TASK: task_means(mmlu.gain, mmlu.task, fold),
    }
    ties = np.random.default_rng(17).random(mmlu.rows)
    for name, score in given.items():
        found = curve(order(score, ties), mmlu.weak, mmlu.strong)
        apgr, _, _, cpt50, cpt80, aiq = PUBLISHED[name]
        assert found.apgr == pytest.approx(apgr, abs=0.005)
        assert (found.cpt(0.5), found.cpt(0.8)) == pytest.approx((cpt50, cpt80), abs=0.3)
        assert found.aiq == pytest.approx(aiq, abs=0.0005)


@pytest.mark.big
@pytest.mark.long
@pytest.mark.parametrize("router", PUBLISHED)
def test_figures_equal_those_published_on_the_same_table(judged: RouterVerdict, router: str):
    apgr, low, high, cpt50, cpt80, aiq = PUBLISHED[router]
    found = named(judged.in_domain, router)
    assert found.apgr.mid == pytest.approx(apgr, abs=0.005)
    assert (found.apgr.low, found.apgr.high) == pytest.approx((low, high), abs=0.005)
    assert (found.cpt50, found.cpt80) == pytest.approx((cpt50, cpt80), abs=0.2)
    assert found.aiq == pytest.approx(aiq, abs=0.0005)


@pytest.mark.big
@pytest.mark.long
def test_oracle_and_quality_equal_those_published(judged: RouterVerdict):
    found = named(judged.in_domain, ORACLE)
    assert found.apgr.mid == pytest.approx(1.258, abs=0.005) and found.aiq == pytest.approx(0.86, abs=0.0005)
    assert (found.cpt50, found.cpt80) == pytest.approx((6.0, 9.6), abs=0.05)
    assert (judged.weak, judged.strong) == pytest.approx((0.708, 0.828), abs=0.0005)


@pytest.mark.big
@pytest.mark.long
def test_router_above_length_in_cross_validation_is_refused_on_held_out_tasks(judged: RouterVerdict):
    inside, outside = (named(f, "TF-IDF + logistic") for f in (judged.in_domain, judged.held_out))
    assert inside.over[LENGTH].mid > 0.02 and outside.over[LENGTH].mid < 0
    assert "has not seen" in (judged.refused or {})["TF-IDF + logistic"]
    assert not judged.admitted and not judged.wanted


SCORED = {  # by WordLlama's vectors, which are no part of this package: APGR with its interval, CPT50, CPT80, AIQ
    "knn": (0.588, 0.564, 0.609, 36.9, 73.1, 0.7798),
    "ridge": (0.569, 0.545, 0.589, 40.5, 70.5, 0.7776),
}


def scores(name: str) -> np.ndarray:
    with gzip.open(MMLU.with_name("mmlu-dev-scores.csv.gz"), "rt") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


@pytest.fixture
def without_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learned routers take most of the time and are not asked for."""
    monkeypatch.setattr(verdict, "learned", lambda *_: {})


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.parametrize("router", SCORED)
def test_figures_of_a_score_column_equal_those_published(
    mmlu: AnsweredTable, router: str, without_learning: None
):
    apgr, low, high, cpt50, cpt80, aiq = SCORED[router]
    found = named(admit(replace(mmlu, score=scores(router))).in_domain, OWN)
    assert found.apgr.mid == pytest.approx(apgr, abs=0.005)
    assert (found.apgr.low, found.apgr.high) == pytest.approx((low, high), abs=0.005)
    assert (found.cpt50, found.cpt80) == pytest.approx(
        (cpt50, cpt80), abs=1.0
    )  # kNN's scores are full of ties
    assert found.aiq == pytest.approx(aiq, abs=0.0005)


@pytest.mark.heavy
@pytest.mark.long
def test_router_that_wins_in_cross_validation_is_refused_where_it_asks_of_unseen_subjects(
    mmlu: AnsweredTable, without_learning: None
):
    inside = named(admit(replace(mmlu, score=scores("knn"))).in_domain, OWN)
    assert inside.apgr.low > 0.5 and inside.over[LENGTH].low > 0  # what a cross-validation shows
    found = admit(replace(mmlu, score=scores("knn_held_out")))
    assert not found.wanted and "chance" in (found.refused or {})[OWN]
    assert named(found.held_out, OWN).over[LENGTH].mid < 0


# --- made tables: the arithmetic, and each verdict -----------------------------------------------------


def made(tasks: int = 12, each: int = 60, seed: int = 11, hard_words: bool = True) -> AnsweredTable:
    """Half of each task's prompts are hard; the weak model fails those. Words name the task, and the hardness."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    hard = rng.random(tasks * each) < 0.5
    weak = np.where(hard, rng.random(len(task)) < 0.2, rng.random(len(task)) < 0.95).astype(float)
    strong = (rng.random(len(task)) < 0.95).astype(float)
    words = ["prove solve" if h and hard_words else "quote title" for h in hard]
    prompts = tuple(
        f"topic{t} about{t} {w} item{i % 7}" for i, (t, w) in enumerate(zip(task, words, strict=True))
    )
    names = tuple(f"t{i:02}" for i in range(tasks))
    return AnsweredTable("made", tuple(map(str, range(len(task)))), prompts, names, task, weak, strong)


def test_router_that_reads_what_holds_on_every_task_is_admitted():
    found = admit(made())
    assert "TF-IDF + logistic" in found.admitted and found.wanted


def test_router_that_learned_the_tasks_wins_in_domain_and_is_refused():
    table = made(hard_words=False)
    easy = (
        table.task % 2 == 0
    )  # in these tasks the weak model is always right: the task's name is all there is
    table = replace(table, weak=np.where(easy, table.strong, table.weak))
    found = admit(table)
    inside = named(found.in_domain, "TF-IDF + logistic")
    assert inside.over[LENGTH].low > 0
    assert not found.admitted and all("not seen" in why for why in (found.refused or {}).values())


def test_better_and_cheaper_model_leaves_nothing_to_route():
    table = made()
    n = table.rows
    cheap = replace(table, weak_cost=np.full(n, 2.0), strong_cost=np.full(n, 1.0))
    assert "always use it" in admit(cheap).no_router and not admit(cheap).wanted
    same_cost = replace(table, weak_cost=np.ones(n), strong_cost=np.ones(n))
    assert "no dearer" in admit(same_cost).no_router
    swapped = replace(
        table, weak=table.strong, strong=table.weak, weak_cost=np.ones(n), strong_cost=np.full(n, 2.0)
    )
    assert "weak model is as good" in admit(swapped).no_router
    assert "not better" in admit(replace(swapped, weak_cost=None, strong_cost=None)).no_router


def test_models_that_are_not_told_apart_are_not_routed():
    table = made(tasks=6, each=20)
    weak = table.strong.copy()
    weak[np.flatnonzero(weak == 1)[:1]] = 0
    assert "within chance" in admit(replace(table, weak=weak)).no_router


@pytest.mark.heavy
def test_own_score_decides_and_a_task_table_of_its_own_does_not_help():
    table = made(hard_words=False)
    rng = np.random.default_rng(1)
    perfect = admit(replace(table, score=table.gain + 0.1 * rng.random(table.rows)))
    assert OWN in perfect.admitted and perfect.wanted
    noise = admit(replace(table, score=rng.random(table.rows)))
    assert not noise.wanted and "chance" in (noise.refused or {})[OWN]


@pytest.mark.heavy
def test_tasks_that_the_router_has_seen_do_not_count():
    table = made(hard_words=False)
    seen = table.task < 6
    score = np.where(seen, table.gain, np.random.default_rng(2).random(table.rows))
    everywhere = admit(replace(table, score=score))
    assert everywhere.wanted  # as long as the table does not say
    told = admit(replace(table, score=score, seen=seen))
    assert not told.wanted and told.held_out_tasks == 6
    few = admit(replace(table, score=table.gain, seen=table.task < 9))
    assert not few.wanted and "at least 5" in (few.refused or {})[OWN]


def test_one_task_alone_admits_nothing():
    table = made(tasks=1, each=200)
    found = admit(replace(table, score=table.gain))
    assert found.in_domain and not found.held_out and not found.wanted


def test_area_of_resamples_equals_that_of_repeated_questions():
    table, rng = made(tasks=3, each=30), np.random.default_rng(0)
    by = order(rng.random(table.rows), rng.random(table.rows))
    counts = resamples(table.task, False, rng)[:5]
    for row, area in zip(counts, areas(by, table.gain, counts), strict=True):
        repeated = np.repeat(by, row[by])
        assert area == pytest.approx(curve(repeated, table.weak, table.strong).apgr, abs=1e-4)


def test_whole_tasks_are_resampled_together():
    table = made(tasks=6, each=10)
    counts = resamples(table.task, True, np.random.default_rng(0))
    assert all(len(set(row[table.task == t])) == 1 for row in counts[:20] for t in range(6))
    assert set(counts.sum(axis=1)) == {60}


def test_resample_without_a_gain_says_nothing():
    assert np.isnan(areas(np.arange(3), np.array([1.0, -1.0, -1.0]), np.ones((1, 3), dtype=np.uint16)))[0]
    found = spread(0.5, np.array([np.nan]))
    assert found.low == -np.inf and found.high == np.inf


def test_aiq_goes_by_cost_where_costs_are_known():
    weak, strong, by = np.zeros(4), np.ones(4), np.arange(4)
    assert curve(by, weak, strong).aiq == pytest.approx(0.5)
    cheap_first = curve(by, weak, strong, np.array([0.0, 0.0, 1.0, 1.0]))
    assert cheap_first.aiq == pytest.approx(0.75)  # half of the gain is free
    assert curve(by, np.array([0, 0, 1.0, 1.0]), np.array([1.0, 1.0, 0, 0])).aiq == pytest.approx(0.875)


def test_no_question_scores_itself():
    gain, task = np.array([1.0] + [0.0] * 9), np.zeros(10, dtype=int)
    fold = np.arange(10) % 5
    assert task_means(gain, task, fold)[0] == 0
    scores = few_labels(gain, task, 50, np.random.default_rng(0))
    assert scores[0] == 0 and sorted(set(scores)) == pytest.approx([0, 0.2])


def test_weights_of_a_fold_ignore_its_other_prompts():
    terms = TermCounts.of(["apple pear", "apple fig", "fig plum", "plum nut plum"])
    train = np.array([True, True, False, False])
    rows = terms.weighed(train)
    known = [set(rows.columns[a:b]) for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)]
    assert len(known[0]) == 1 and known[3] == set()  # apple alone stands in two of the training prompts
    assert rows.times(np.ones(rows.width))[:2] == pytest.approx([1, 1])
    back = rows.transposed_times(np.array([1.0, 2.0, 3.0, 4.0]))
    dense = np.zeros((4, rows.width))
    for i, (a, b) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True)):
        dense[i, rows.columns[a:b]] = rows.values[a:b]
    assert back == pytest.approx(dense.T @ [1, 2, 3, 4])


# --- reading ---------------------------------------------------------------------------------------------

ROWS = [{"id": str(i), "task": f"t{i % 6}", "prompt": f"p{i}", "weak": i % 2, "strong": 1} for i in range(60)]


def written(path: Path, rows: list[dict]) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        if ".csv" in path.suffixes:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_formats_read_alike(tmp_path: Path, name: str):
    found = read_table(written(tmp_path / name, ROWS))
    assert found.rows == 60 and found.tasks == tuple(f"t{i}" for i in range(6)) and found.score is None
    assert list(found.gain[:2]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weak": "1.5"}, "line 4: weak = 1.5 is not within 0..1"),
        ({"weak": "nan"}, "line 4: weak = nan"),
        ({"strong": "yes"}, "line 4: strong = 'yes' is not a number"),
        ({"task": ""}, "line 4: has no task"),
        ({"id": "1"}, "line 4: id '1' occurs twice"),
        ({"score": "0.3"}, "59 rows have no score"),
        ({"score": "inf"}, "score = inf is not finite"),
    ],
)
def test_bad_row_is_named_by_its_line(tmp_path: Path, change: dict, said: str):
    rows = [{**row, "score": ""} for row in ROWS]
    rows[2].update(change)
    with pytest.raises(UsageError, match=said):
        read_table(written(tmp_path / "t.csv", rows))


def test_bad_files_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="decide nothing"):
        read_table(written(tmp_path / "few.csv", ROWS[:10]))
    with pytest.raises(UsageError, match="no column strong"):
        read_table(written(tmp_path / "c.csv", [{k: v for k, v in ROWS[0].items() if k != "strong"}]))
    with pytest.raises(UsageError, match="neither CSV"):
        read_table(written(tmp_path / "t.txt", ROWS))
    (tmp_path / "cut.csv.gz").write_bytes(written(tmp_path / "t.csv.gz", ROWS).read_bytes()[:-30])
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "cut.csv.gz")
    with pytest.raises(UsageError, match="one of weak_cost"):
        read_table(written(tmp_path / "cost.csv", [{**row, "weak_cost": 1} for row in ROWS]))
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.heavy
def test_verb_prints_a_verdict_and_exits_by_it(tmp_path: Path):
    from freehold.cli.main import cli

    table = made(hard_words=False)
    rows = [
        {"id": i, "task": table.tasks[t], "prompt": p, "weak": w, "strong": s, "score": s - w}
        for i, t, p, w, s in zip(table.ids, table.task, table.prompts, table.weak, table.strong, strict=True)
    ]
    path = str(written(tmp_path / "t.csv", rows))
    done = CliRunner().invoke(cli, ["route", "admit", path])
    assert done.exit_code == 0 and "score column: admitted" in done.output
    noise = np.random.default_rng(0).random(len(rows))
    bad = str(written(tmp_path / "bad.csv", [{**r, "score": x} for r, x in zip(rows, noise, strict=True)]))
    done = CliRunner().invoke(cli, ["route", "admit", bad, "--json"])
    found = json.loads(done.output)
    assert done.exit_code == 1 and not next(v for v in found["verdicts"] if v["router"] == OWN)["admitted"]
