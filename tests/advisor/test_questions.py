"""Questions in the words of users, answered: which models may stand among the first, and what holds for all.

The sets were written before the answers were looked at; three were changed after: on a Raspberry Pi 5 hybrids alone run
at the pace of a chat; nothing that summarises 64,000 tokens at its pace on two such cores reaches the task's bar; two
3090s hold the mixtures of 30 and 35 billion. `one_of`: at least one is among the first five; empty: nothing is good
enough, and other hardware is named on which something is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.base.errors import UsageError
from freehold.choose import choosing
from freehold.choose.advisor import machine, quality
from freehold.choose.advisor.advice import Judged


@dataclass(frozen=True)
class Expected:
    question: str
    one_of: tuple[str, ...]
    every: Callable[[Judged], bool] = lambda judged: True


def may_speak(code: str) -> Callable[[Judged], bool]:
    """No lab of a pick names other languages alone, unless the model has a result in this one."""
    return lambda judged: [t.code for t in judged.languages if t.level != quality.DENIED] == [code]


def where(name: str) -> Callable[[Judged], bool]:
    return lambda judged: judged.placement is not None and judged.placement.where == name


EXPECTED = [
    Expected("RAG over German contracts", ("Qwen3-4B", "Qwen3-8B", "gemma-3-12b-it"), may_speak("de")),
    Expected(
        "chatbot in French on an H100",
        ("gemma-4-31B-it", "Qwen3.6-27B", "Qwen3.5-27B", "gemma-3-27b-it", "Mistral-Small-4-119B-2603"),
        may_speak("fr"),
    ),
    Expected("notes offline on a macbook", ("Qwen3-4B", "Qwen3-8B", "gemma-3-12b-it"), where("m4:16gb")),
    Expected(
        "cheapest model for classifying support mails",
        ("Qwen3-1.7B", "Qwen3-4B", "Llama-3.2-3B-Instruct", "Qwen3-4B-Instruct-2507", "gemma-3-4b-it"),
        lambda j: j.model.role == "generator",
    ),
    Expected(
        "coding agent on an RTX 4090",
        ("Qwen3.6-27B", "Qwen3.5-27B", "Qwen3-Coder-30B-A3B-Instruct", "Devstral-Small-2-24B-Instruct-2512"),
        lambda j: j.model.tools is True and j.placement is not None and j.placement.memory < 24 << 30,
    ),
    Expected(
        "8×H200 reasoning",
        ("DeepSeek-V4-Pro", "Kimi-K2.6", "GLM-5.1", "Kimi-K2-Thinking", "Kimi-K3", "DeepSeek-V4-Flash"),
        where("8xh200"),
    ),
    Expected(
        "embeddings for multilingual search",
        ("Qwen3-Embedding-0.6B", "bge-m3", "multilingual-e5-large-instruct"),
        lambda j: j.model.role == "embedder",
    ),
    Expected(
        "code completion on a 16 GB laptop",
        ("Qwen2.5-Coder-7B-Instruct", "Qwen2.5-Coder-3B-Instruct", "Qwen2.5-Coder-1.5B-Instruct"),
        lambda j: j.model.fills is True and j.placement is not None and j.placement.memory < 16 << 30,
    ),
    Expected(
        "summarising long PDFs on CPU",
        (),
        lambda j: j.model.context >= 64_000,
    ),
    Expected(
        "translate English to Japanese on a 4090",
        ("gemma-3-27b-it", "gemma-4-31B-it", "Qwen3.5-27B", "Qwen3-32B", "gemma-4-26B-A4B-it"),
        may_speak("ja"),
    ),
    Expected(
        "tool-calling agent on 2xh100",
        ("Qwen3.6-27B", "GLM-4.5-Air", "MiniMax-M2.5"),
        lambda j: j.model.tools is True,
    ),
    Expected(
        "Raspberry Pi 5 assistant, chat",
        ("LFM2.5-8B-A1B", "Qwen3.5-2B"),
        where("raspberry-pi-5"),
    ),
    Expected(
        "helpdesk bot for 20 people on two 3090s",
        ("Qwen3.6-27B", "gemma-3-12b-it", "Qwen3.6-35B-A3B", "Qwen3-30B-A3B-Instruct-2507", "gpt-oss-20b"),
        lambda j: j.placement is not None and j.placement.users == 20,
    ),
    Expected(
        "best maths tutor under 8B",
        ("Qwen3-8B", "Qwen3-4B-Thinking-2507", "Qwen3.5-4B", "Qwen3-4B"),
        lambda j: j.model.params_b <= 8.3,
    ),
    Expected(
        "self-hosted copilot for 12 developers, $500 a month",
        ("Qwen2.5-Coder-7B-Instruct", "Qwen2.5-Coder-14B-Instruct", "Qwen2.5-Coder-32B-Instruct"),
        lambda j: j.placement is not None and (j.placement.month or 0) <= 500,
    ),
    Expected(
        "rerank search results in Arabic on an H100",
        ("Qwen3-Reranker-8B", "Qwen3-Reranker-4B"),
        lambda j: j.model.role == "reranker",
    ),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described_machine: Callable[..., object]) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    described_machine(free=24 * 10**9, rates=machine.Rates(60.0, 2000.0))


@pytest.mark.heavy
@pytest.mark.parametrize("expected", EXPECTED, ids=lambda e: e.question)
def test_an_answer_is_among_the_expected(expected: Expected):
    found = choosing.advise(expected.question)
    first = [j.model.id.rpartition("/")[2] for j in found.picks[:5]]
    assert set(first) & set(expected.one_of) if expected.one_of else found.instead and not first, first
    assert all(expected.every(judged) for judged in found.picks)


@pytest.mark.parametrize("question", ["image captions", "voice transcription", "something nice", "zzz"])
def test_what_is_not_answered_is_an_error(question: str):
    with pytest.raises(UsageError):
        choosing.advise(question)


def test_a_subject_without_results_is_said():
    found = choosing.advise("private medical notes", on="h100")
    assert found.asked is not None
    said = {p.what: p.says for p in found.asked.understood}
    assert "--try" in said["subject"] and "sends no data out" in said["private"]
