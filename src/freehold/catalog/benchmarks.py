"""Benchmarks, the public boards that publish their results, and the tasks that they are evidence for.

Knows what each measures, of how many items, in which skill; knows no model (advisor/quality.py puts them together).
Path: schema.lint, advisor.quality -> BENCHMARKS.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.catalog.model import Score
from freehold.errors import StoreError, UsageError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a model is asked and what is counted, in per cent.

    `skill`: general, code, maths, tools or documents. `items`: questions a run asks, which bound how well a repeat
    agrees. `chance`: per cent that guessing gets. `one_runner`: one party runs all models alike.
    """

    about: str
    skill: str
    items: int
    chance: float = 0.0
    one_runner: bool = False


def _arena(of: str, skill: str = "general") -> Benchmark:
    # Ratings rest on thousands of votes; ratings of snapshots ten months apart differ by about 12 points (1.7 %).
    return Benchmark(
        f"share of votes expected against a model rated 1300 on LMArena, {of}", skill, 3000, one_runner=True
    )


BENCHMARKS = {
    "aider_polyglot": Benchmark(
        "exercises in six programming languages by edits to files, solved after two tries", "code", 225
    ),
    "aime24": Benchmark(
        "competition mathematics of 2024, 30 problems with whole numbers as answers", "maths", 30
    ),
    "aime25": Benchmark(
        "competition mathematics of 2025, 30 problems with whole numbers as answers", "maths", 30
    ),
    "aime26": Benchmark(
        "competition mathematics of 2026, 30 problems with whole numbers as answers", "maths", 30
    ),
    "arena": _arena("all prompts"),
    "arena_chinese": _arena("prompts in Chinese"),
    "arena_coding": _arena("prompts about code", "code"),
    "arena_french": _arena("prompts in French"),
    "arena_german": _arena("prompts in German"),
    "arena_instructions": _arena("prompts with several instructions"),
    "arena_japanese": _arena("prompts in Japanese"),
    "arena_korean": _arena("prompts in Korean"),
    "arena_maths": _arena("prompts about mathematics", "maths"),
    "arena_russian": _arena("prompts in Russian"),
    "arena_spanish": _arena("prompts in Spanish"),
    "bfcl": Benchmark(
        "calls of functions, chosen and filled in rightly (version 3 unless the setting says otherwise)",
        "tools",
        4000,
    ),
    "bigcodebench": Benchmark("Python tasks that need several libraries, tests passed", "code", 1140),
    "gpqa": Benchmark(
        "questions of graduate biology, physics and chemistry, multiple choice", "general", 448, 25
    ),
    "gpqa_diamond": Benchmark("the 198 questions of gpqa on which experts agree", "general", 198, 25),
    "gsm8k": Benchmark("school arithmetic in words", "maths", 1319),
    "humaneval": Benchmark(
        "164 Python functions from their docstrings, tests passed at the first try", "code", 164
    ),
    "humaneval_fim": Benchmark(
        "lines of those functions taken out and filled in from both sides", "code", 1033
    ),
    "humaneval_plus": Benchmark("humaneval with eighty times the tests", "code", 164),
    "ifeval": Benchmark("instructions whose keeping a program can check", "general", 541),
    "livebench": Benchmark(
        "LiveBench's questions of 2026-01, mean of its categories", "general", 1000, one_runner=True
    ),
    "livebench_2024": Benchmark(
        "LiveBench's questions of 2024-11, mean of its categories", "general", 1000, one_runner=True
    ),
    "livebench_agentic": Benchmark(
        "issues of repositories mended by an agent (LiveBench 2026-01)", "code", 60, one_runner=True
    ),
    "livebench_coding": Benchmark(
        "programs written and completed (LiveBench 2026-01)", "code", 120, one_runner=True
    ),
    "livebench_instructions": Benchmark(
        "news articles summarised, paraphrased and simplified under instructions (LiveBench 2026-01)",
        "general",
        200,
        one_runner=True,
    ),
    "livebench_language": Benchmark(
        "puzzles of words, plots and typos (LiveBench 2026-01)", "general", 140, one_runner=True
    ),
    "livebench_maths": Benchmark("mathematics (LiveBench 2026-01)", "maths", 350, one_runner=True),
    "livebench_reasoning": Benchmark("puzzles of logic (LiveBench 2026-01)", "general", 250, one_runner=True),
    "livecodebench": Benchmark(
        "contest programs newer than the training data, of the dates or version in the setting", "code", 175
    ),
    "livecodebench_aa": Benchmark(
        "its 315 problems of 2024-07 to 2025-01 as Artificial Analysis runs them",
        "code",
        315,
        one_runner=True,
    ),
    "math": Benchmark("competition mathematics of secondary school, 5,000 problems", "maths", 5000),
    "math_500": Benchmark("500 problems out of math", "maths", 500),
    "math_level_5": Benchmark("the 1,324 hardest problems of math", "maths", 1324, one_runner=True),
    "mbpp": Benchmark("short Python functions from one sentence, tests passed at the first try", "code", 500),
    "mbpp_plus": Benchmark("mbpp with 35 times the tests", "code", 378),
    "mgsm": Benchmark("250 problems of gsm8k in ten or eleven languages", "maths", 2500),
    "mmlu": Benchmark("57 subjects from school to profession, four choices", "general", 14042, 25),
    "mmlu_pro": Benchmark("14 subjects, harder and with ten choices", "general", 12032, 10),
    "mmlu_redux": Benchmark("mmlu with its wrong questions mended", "general", 5700, 25),
    "mmteb_reranked": Benchmark(
        "texts found in many languages after a reranker ordered them, nDCG@10 (MTEB Multilingual v2)",
        "documents",
        5000,
    ),
    "mmteb_retrieval": Benchmark(
        "texts found in many languages by an embedder, nDCG@10 (MTEB Multilingual v2)", "documents", 5000
    ),
    "mteb_en_retrieval": Benchmark(
        "English texts found by an embedder, nDCG@10 (MTEB English v1)", "documents", 5000
    ),
    "mmmlu": Benchmark("mmlu translated by people into 14 languages", "general", 14042, 25),
    "multipl_e": Benchmark(
        "humaneval translated into other programming languages, tests passed", "code", 1300
    ),
    "open_llm_bbh": Benchmark(
        "23 hard tasks of BIG-bench, choices by likelihood, as the Open LLM Leaderboard runs them",
        "general",
        6511,
        25,
        one_runner=True,
    ),
    "open_llm_ifeval": Benchmark(
        "ifeval as the Open LLM Leaderboard runs it: strict, mean of prompts and instructions",
        "general",
        541,
        one_runner=True,
    ),
    "open_llm_mmlu_pro": Benchmark(
        "mmlu_pro as the Open LLM Leaderboard runs it: five examples, choices by likelihood, no thinking",
        "general",
        12032,
        10,
        one_runner=True,
    ),
    "ruler": Benchmark(
        "finding, tracing and counting in long texts of the length in the setting", "documents", 6500
    ),
    "swe_bench_bash": Benchmark(
        "swe_bench_verified by one agent that has a shell and nothing else", "code", 500, one_runner=True
    ),
    "swe_bench_verified": Benchmark(
        "500 issues of Python projects mended in their repository, tests passed", "code", 500
    ),
    "vectara_faithful": Benchmark(
        "articles answered with a summary that says nothing the article does not say, as a model judges it",
        "documents",
        7700,
        one_runner=True,
    ),
}


# --- public boards: dated tables of results in which one runner, or one keeper, lists many models ---
# `data/boards/*.csv` is one file a board, rows of our models alone; comments above the header say what was
# read where, and `source = ` what a score cites.  A wrong row is our own fault and says where.

COLUMNS = ["model", "benchmark", "value", "setting"]


def of(model: str) -> tuple[Score, ...]:
    """Return what the boards say of a model, by its id."""
    return boards().get(model, ())


@cache
def boards() -> dict[str, tuple[Score, ...]]:
    """Return every board's rows, by model."""
    scores: dict[str, tuple[Score, ...]] = {}
    folder = resources.files("freehold.catalog").joinpath("data", "boards")
    for file in sorted(folder.iterdir(), key=lambda p: p.name):
        if file.name.endswith(".csv"):
            for model, score in parse(file.name, file.read_text(encoding="utf-8")):
                scores[model] = (*scores.get(model, ()), score)
    return scores


def parse(where: str, text: str) -> list[tuple[str, Score]]:
    """Turn one board's table into scores; raise StoreError naming file and row at fault."""
    lines = text.splitlines()
    source_lines = [line for line in lines if line.startswith("# source = ")]
    rows = csv.reader(line for line in lines if not line.startswith("#"))
    if len(source_lines) != 1 or next(rows, []) != COLUMNS:
        raise StoreError(f"{where}: a board has one line `# source = ` and the columns {', '.join(COLUMNS)}")
    return list(_scores(where, rows, source_lines[0].removeprefix("# source = ")))


def _scores(where: str, rows: Iterable[list[str]], source: str) -> Iterable[tuple[str, Score]]:
    for number, row in enumerate(rows, 1):
        try:
            model, benchmark, value, setting = row
            score = Score(benchmark, float(value), setting, source)
        except ValueError:
            raise StoreError(
                f"{where}: row {number}: {row!r} is not a model, benchmark, value, setting"
            ) from None
        if benchmark not in BENCHMARKS or not 0 <= score.value <= 100:
            raise StoreError(f"{where}: row {number}: {benchmark} = {value} is not known, or not in per cent")
        yield model, score


# --- tasks, and the published results that are evidence for each ------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work. `benchmarks`: the scale first, then what is carried over to it (advisor.quality's measures)."""

    id: str
    title: str
    words: tuple[str, ...]  # that name it
    benchmarks: tuple[str, ...]
    pace: float  # tokens a second below which a user waits
    prompt: int  # tokens of a usual request
    answer: int
    sample: str  # a request to try a model with
    hints: tuple[str, ...] = ()  # words that go with it, and name it where nothing else does
    min_context: int = 4000
    tools: bool = False  # the model has to call tools
    encoder: bool = False  # the work is an embedding model's
    reranker: bool = False  # the work is a reranker's
    finder: bool = False  # an embedding model finds the texts that it answers from
    quick: bool = False  # there is no time to think aloud first, however fast the model
    patient: bool = False  # there is, however slow
    fills: bool = False  # the model has to fill in the text between a prefix and a suffix
    base_too: bool = False  # a model that follows no instructions will do
    bar: float = 0.0  # per cent on the first benchmark below which answers are seldom usable; 0: none is set


@cache
def tasks() -> tuple[Task, ...]:
    """Return every kind of work that is known."""
    text = resources.files("freehold.catalog").joinpath("data", "tasks.toml").read_text(encoding="utf-8")
    return tuple(_task(table) for table in tomllib.loads(text)["task"])


def _task(table: dict[str, Any]) -> Task:
    lists: dict[str, Any] = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return Task(**(table | lists))


def task(name: str) -> Task:
    """Return a kind of work by its id; spaces stand for hyphens. Raises UsageError with the ids there are.

    A question in a user's words is questions.question's.
    """
    wanted = "-".join(name.lower().split())
    for one in tasks():
        if one.id == wanted:
            return one
    raise UsageError(f"there is no task {name!r}", f"name one of {kinds()}")


def kinds() -> str:
    """Return the ids of all kinds of work, as an error lists them."""
    return ", ".join(one.id for one in tasks())
