"""freehold hardware, and the same question put to advise in words."""

from __future__ import annotations

import json
from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def test_hardware_for_users_with_speed_cost_and_a_command(run: Run):
    status, out, _ = run("hardware", "qwen3:8b", "--users", "20")
    assert status == 0 and "qwen3:8b for 20 at a time" in out and "$ AN HOUR" in out
    assert ": vllm serve Qwen/Qwen3-8B" in out or ": python -m sglang.launch_server" in out
    assert "not xeon-6980p: " in out and "more that do not suffice: --all" in out


def test_json_has_every_option_and_every_failure(run: Run):
    told = json.loads(run("hardware", "qwen3:8b", "--users", "20", "--json")[1])
    assert told["schema"] == 1 and told["users"] == 20 and told["context"] == 8192
    first = told["options"][0]
    assert first["tok_s_each"]["low"] <= first["tok_s_each"]["mid"] and first["streams"] >= 20
    assert first["rent_hour"]["source"] and all(f["why"] for f in told["failures"])


def test_the_question_in_words_is_answered_by_the_same(run: Run):
    _, out, _ = run("advise", "50 users of DeepSeek-V3: what hardware")
    assert "understood: hardware for deepseek-ai/DeepSeek-V3, 50 at a time" in out and "8xh200" in out
    told = json.loads(run("advise", "what hardware do I need for DeepSeek-V3 with 50 users", "--json")[1])
    assert told["model"] == "deepseek-ai/DeepSeek-V3" and told["users"] == 50


def test_nothing_that_does_exits_1_with_a_way_out(run: Run):
    status, out, err = run("hardware", "deepseek-v3", "--users", "4000", "--min-speed", "500")
    assert status == 1 and "no hardware of the catalogue suffices" in out and "shared among machines" in err


def test_a_question_in_words_drops_nothing_in_silence(run: Run):
    _, out, _ = run("advise", "what gpu for qwen3:8b in German for our zoo with 16k context and 5 users")
    assert "5 at a time, 16,000 tokens of context" in out and "memory for 16,000 each" in out
    assert "ignored: zoo, german" in out
    assert "hardware for deepseek-ai/DeepSeek-V3, 50 at a time" in run("advise", "50 users of DeepSeek-V3")[1]


def test_hardware_for_an_embedder_is_refused_for_what_it_is(run: Run):
    status, _, err = run("hardware", "all-minilm:22m")
    assert status == 2 and "makes no text" in err
