"""Questions in the words of users: what is understood of each, what is ignored, and which models may answer.

The table was written before the parser. `fields` are Question's; `tops` names models of which one must be among
the first five; `never` those that must not be picks; `ignored` the words an answer must say it did not use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from freehold.base.catalog.questions import question, rig
from freehold.base.errors import UsageError


@dataclass(frozen=True)
class Asked:
    words: str
    task: str
    fields: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


ASKED = [
    Asked("RAG over German contracts", "rag", {"languages": ("de",), "context": 0}),
    Asked("chatbot in French", "chat", {"languages": ("fr",)}),
    Asked("notes offline on a macbook", "documents", {"hardware": "m4:16gb", "private": True}),
    Asked("cheapest model for classifying support mails", "extraction", {"cheapest": True}),
    Asked("coding agent on an RTX 4090", "agent", {"hardware": "rtx-4090"}),
    Asked("8×H200 reasoning", "reasoning", {"hardware": "8xh200"}),
    Asked("reasoning on 8 x H200 for 20 users", "reasoning", {"hardware": "8xh200", "users": 20}),
    Asked("embeddings for multilingual search", "embeddings", {"languages": ("mul",)}),
    Asked("code completion on a 16 GB laptop", "code-completion", {"hardware": "laptop:16gb"}),
    Asked("summarising long PDFs on CPU", "documents", {"context": 64_000, "here": True}),
    Asked("translate English to Japanese", "translation", {"languages": ("en", "ja")}),
    Asked("private medical notes", "documents", {"private": True, "subjects": ("medical",)}),
    Asked("tool-calling agent with 32k context", "agent", {"context": 32_000}),
    Asked("Raspberry Pi 5 assistant", "chat", {"hardware": "raspberry-pi-5"}),
    Asked("helpdesk bot for 50 people on two 3090s", "chat", {"users": 50, "hardware": "2xrtx-3090"}),
    Asked("best maths tutor under 8B", "maths", {"max_params": 8.0}),
    Asked("extract JSON from Spanish invoices, not from China", "extraction",
          {"languages": ("es",), "country_not": ("CN",)}),
    Asked("SQL generation for my warehouse", "code", {}, ("warehouse",)),
    Asked("Chatbot auf Deutsch", "chat", {"languages": ("de",)}, ("auf",)),
    Asked("rerank search results in Arabic", "rerank", {"languages": ("ar",)}),
    Asked("self-hosted copilot for 12 developers, $500 a month", "code-completion",
          {"private": True, "users": 12, "budget": 500.0}),
    Asked("Summarise 200-page legal contracts in Polish on an M4 Max 64GB", "documents",
          {"context": 120_000, "hardware": "m4-max:64gb", "subjects": ("legal",), "languages": ("pl",)}),
    Asked("chat for our team of 1,000 users", "chat", {"users": 1000}),
    Asked("a 24 GB GPU for a coding assistant", "code", {"hardware": "rtx-4090"}),
    Asked("macbook pro with 48 GB for writing", "chat", {"hardware": "m4-pro:48gb"}),
    Asked("classify tickets, 100k a day", "extraction", {"context": 0}),
    Asked("chatbot for 20M tokens per month, 12 users", "chat", {"context": 0, "users": 12}),
    Asked("agent at 30 tokens/s with 64k context", "agent", {"context": 64_000}),
    Asked("coding on a 3060 with 12 GB", "code", {"hardware": "rtx-3060"}),
    Asked("agents on a 4090 for 5 people", "agent", {"hardware": "rtx-4090", "users": 5}),
    Asked("zweckdienlich chat", "chat", {}, ("zweckdienlich",)),
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=lambda a: a.words)
def test_a_question_is_understood(asked: Asked):
    found = question(asked.words)
    assert found.task.id == asked.task
    assert {name: getattr(found, name) for name in asked.fields} == asked.fields
    assert found.ignored == asked.ignored


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("zzz", "code-completion"),  # the known tasks
        ("something nice", "code-completion"),
        ("image captions", "vision"),
        ("voice transcription", "speech"),
        ("generate pictures of cats", "vision"),
        ("50 users of DeepSeek-V3: what hardware", "freehold hardware"),
    ],
)
def test_what_matches_no_task_is_an_error_that_says_what_is_known(words: str, says: str):
    with pytest.raises(UsageError) as caught:
        _ = question(words).task
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_words_of_another_task_are_named_and_not_ranked_for():
    parts = {(p.what, p.words) for p in question("coding assistant").parts}
    assert ("task", "coding") in parts and ("beside", "assistant") in parts


def test_a_question_names_the_model_whose_hardware_it_asks_for():
    found = question("What hardware do I need for Llama 3.3 70B with 20 users?")
    assert (found.model, found.users, found.asks_hardware) == ("llama3.3:70b", 20, True)


def test_users_of_a_model_alone_ask_for_hardware():
    found = question("serve DeepSeek-V3 to 50 users")
    assert (found.model, found.users, found.asks_hardware) == ("deepseek-ai/DeepSeek-V3", 50, True)
    assert not question("DeepSeek-V3 on 8xh200 for 50 users").asks_hardware
    with pytest.raises(UsageError, match="names qwen3:8b and no kind of work"):
        _ = question("compare qwen3:8b and llama3.1:8b").task


def test_a_question_is_a_few_words():
    with pytest.raises(UsageError, match="over 400"):
        question("x" * 401)


@pytest.mark.parametrize("text", ["", "   ", "?!", "8x", "$", "16", "16 GB", "x x x", "١٢ users", "🦙" * 50])
def test_odd_text_is_no_task(text: str):
    with pytest.raises(UsageError):
        _ = question(text).task


@pytest.mark.parametrize("said", ["this laptop", "this macbook pro", "this mac", "this machine"])
def test_this_laptop_is_the_machine_that_is_asked(said: str):
    asked = question(f"chat on {said}")
    assert asked.here and not asked.hardware and not asked.ignored
    assert question("chat on a laptop").hardware == "laptop:16gb"
    with pytest.raises(UsageError, match="is this machine"):
        rig(said)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("macbook pro 16gb", "m4:16gb"),
        ("16 GB MacBook", "m4:16gb"),
        ("MacBook Pro 48 GB", "m4-pro:48gb"),
        ("rtx 4090", "rtx-4090"),
    ],
)
def test_an_option_takes_hardware_in_the_words_of_a_task(words: str, name: str):
    assert rig(words).name == name
    assert question(f"chat on a {words}").hardware == name


@pytest.mark.parametrize("words", ["gpu", "24gb gpu", "macbook pro 17gb", "german chat", "foo"])
def test_an_option_takes_no_words_that_leave_the_hardware_open(words: str):
    with pytest.raises(UsageError):
        rig(words)
