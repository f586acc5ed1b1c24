"""Names as people type them lead to one model, to a family under one licence, or to the choice they leave open."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog.entries import alike, spelled, words
from freehold.base.errors import ModelNotFound
from freehold.choose.advisor.lineage import subject

NOWHERE = Path("/nowhere/catalogue.toml")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Mistral Small 4", "mistralai/Mistral-Small-4-119B-2603"),
        ("Mistral Large 3", "mistralai/Mistral-Large-3-675B-Instruct-2512"),
        ("mistral large 2411", "mistralai/Mistral-Large-Instruct-2411"),
        ("DBRX Instruct", "databricks/dbrx-instruct"),
        ("Jamba 1.7 Large", "ai21labs/AI21-Jamba-Large-1.7"),
        ("yi:34b", "01-ai/Yi-34B-Chat"),
        ("Yi 1.5 34B", "01-ai/Yi-1.5-34B-Chat"),
        ("ERNIE 4.5 300B", "baidu/ERNIE-4.5-300B-A47B-PT"),
        ("chatglm2", "zai-org/chatglm2-6b"),
        ("mpt-7b", "mosaicml/mpt-7b"),
        ("tulu3:8b", "allenai/Llama-3.1-Tulu-3-8B"),
        ("falcon3:10b", "tiiuae/Falcon3-10B-Instruct"),
        ("falcon:40b", "tiiuae/falcon-40b-instruct"),
        ("exaone4:32b", "LGAI-EXAONE/EXAONE-4.0-32B"),
        ("opt-6.7b", "facebook/opt-6.7b"),
        ("command-a-reasoning", "CohereLabs/command-a-reasoning-08-2025"),
        ("qwen2.5vl:7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("deepseek-coder:6.7b", "deepseek-ai/deepseek-coder-6.7b-instruct"),
        ("deepseek-coder-v2:16b", "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct"),
        ("codestral-mamba", "mistralai/Mamba-Codestral-7B-v0.1"),
        ("nemotron-4", "nvidia/Nemotron-4-340B-Instruct"),
        ("r1-zero", "deepseek-ai/DeepSeek-R1-Zero"),
        ("deepseek-r1-0528", "deepseek-ai/DeepSeek-R1-0528"),
        ("phi-2", "microsoft/phi-2"),
        ("gemma:7b", "google/gemma-7b-it"),
        ("gemma3n:e4b", "google/gemma-3n-E4B-it"),
        ("qwen3.8-2.4t", "Qwen/Qwen3.8-2.4T-A95B"),
        ("llama3.2-vision:11b", "meta-llama/Llama-3.2-11B-Vision-Instruct"),
        ("qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("kimi-k2", "moonshotai/Kimi-K2-Instruct"),
        ("DeepSeek V3", "deepseek-ai/DeepSeek-V3"),
        ("llama3.1:70b-instruct-q4_K_M", "meta-llama/Llama-3.1-70B-Instruct"),
        ("qwen2.5:7b-instruct-q8_0", "Qwen/Qwen2.5-7B-Instruct"),
        ("qwen:0.5b", "Qwen/Qwen1.5-0.5B-Chat"),
        ("qwen:4b-chat-q4_0", "Qwen/Qwen1.5-4B-Chat"),
    ],
)
def test_a_model_is_found_as_people_spell_it(typed: str, meant: str):
    assert catalog.model(typed, NOWHERE).id == meant


@pytest.mark.parametrize(
    "typed", ["qwen3:9b", "llama 9", "mistral small 5", "gpt", "", "qwen/qwen3 8b", "phi-2b"]
)
def test_another_size_or_version_is_another_model(typed: str):
    assert not spelled(typed, catalog.models(NOWHERE))


def test_a_name_without_its_size_lists_the_sizes():
    with pytest.raises(ModelNotFound) as e:
        catalog.model("falcon3", NOWHERE)
    assert "4 models" in str(e.value) and "tiiuae/Falcon3-7B-Instruct" in e.value.hint


def test_a_family_under_one_licence_is_one_subject():
    found = subject("falcon3")
    assert (found.name, found.expression) == ("falcon3 (4 models)", "LicenseRef-falcon-3-2024")
    assert subject("llama3.2-vision").multimodal is True


@pytest.mark.parametrize("typed", ["vicuna", "mpt", "mpt:7b", "qwen2.5", "Qwen2.5-Coder", "deepseek-r1"])
def test_a_family_under_several_licences_is_asked_back(typed: str):
    with pytest.raises(ModelNotFound) as e:
        subject(typed)
    assert "say which" in e.value.hint and "(" in e.value.hint


def test_a_repository_s_very_name_is_not_asked_back():
    assert subject("DeepSeek-R1").expression == "MIT"


@pytest.mark.parametrize(
    ("typed", "licence"),
    [
        ("starcoder2:15b", "LicenseRef-scancode-bigcode-open-rail-m-v1"),
        ("starcoder2", "LicenseRef-scancode-bigcode-open-rail-m-v1"),
        ("codegemma:7b", "LicenseRef-scancode-gemma-tou-2025-03-24"),
        ("phi3:mini", "MIT"),
        ("llama4:maverick", "LicenseRef-scancode-llama-4-cla-2025"),
        ("llama-guard3:8b", "LicenseRef-scancode-llama-3.1-license-2024"),
        ("command-r", "LicenseRef-cohere-cc-by-nc-4.0"),
        ("granite-code:20b", "Apache-2.0"),
        ("nv-embed-v2", "CC-BY-NC-4.0"),
        ("sfr-embedding-mistral", "CC-BY-NC-4.0"),
        ("jina-embeddings-v4", "LicenseRef-qwen-research-2024"),
        ("codegen-16b-mono", "BSD-3-Clause"),
    ],
)
def test_a_repository_outside_the_catalogue_is_found_as_people_spell_it(typed: str, licence: str):
    assert subject(typed).expression == licence and subject(typed).source


def test_a_family_asked_back_lists_what_its_members_inherit():
    with pytest.raises(ModelNotFound) as e:
        subject("deepseek-r1")
    assert "DeepSeek-R1-Distill-Llama-70B (MIT, llama3.3)" in e.value.hint


@pytest.mark.parametrize("typed", ["qwen2.5:7b", "qwen3", "olmo2", "gemma3"])
def test_a_tag_or_a_family_under_one_licence_is_not_asked_back(typed: str):
    assert subject(typed).model is not None


@pytest.mark.parametrize(
    ("typed", "licence"),
    [
        ("TheBloke/Llama-2-13B-chat-GGUF", "LicenseRef-scancode-llama-2-license-2023"),
        ("TheBloke/CodeLlama-34B-Instruct-GPTQ", "LicenseRef-scancode-llama-2-license-2023"),
        ("TheBloke/Orca-2-13B-GGUF", "LicenseRef-microsoft-research"),
        ("TheBloke/mpt-30B-chat-GGML", "CC-BY-NC-SA-4.0"),
    ],
)
def test_a_packed_copy_by_a_repacker_keeps_the_licence(typed: str, licence: str):
    assert subject(typed).expression == licence


@pytest.mark.parametrize(
    "typed", ["someone/Orca-2-13B-GGUF", "TheBloke/Orca-2-13B", "TheBloke/SomeMix-13B-GGUF", "4"]
)
def test_a_copy_by_anybody_else_is_not_known(typed: str):
    with pytest.raises(ModelNotFound):
        subject(typed)


@pytest.mark.parametrize("typed", ["glm4:9b", "solar:10.7b", "qwen2.5-math", "stable-code:3b"])
def test_repositories_under_several_licences_are_asked_back(typed: str):
    with pytest.raises(ModelNotFound, match="under different licences") as e:
        subject(typed)
    assert "say which" in e.value.hint


def test_no_word_that_means_something_is_added_to_a_name():
    names = ["bigcode/starcoder2-15b-instruct-v0.1", "x/starcoder2-vision-15b", "x/Starcoder2-3b"]
    assert alike("starcoder2:15b", names) == ["bigcode/starcoder2-15b-instruct-v0.1"]
    assert alike("starcoder2", names) == ["bigcode/starcoder2-15b-instruct-v0.1", "x/Starcoder2-3b"]
    assert alike("chat", names) == alike("starcoder2:7b", names) == []


def test_words_leave_out_accents_dates_and_quantisations():
    assert words("Tülu-3:8b-Q4_K_M") == {"tulu", "3", "8b"}
    assert words("command-a-reasoning-08-2025") == {"command", "a", "reasoning"}
    assert words("Qwen3-30B-A3B-Instruct-2507") == {"qwen", "3", "30b", "a3b", "instruct"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Jamba 1.5", {"ai21labs/AI21-Jamba-Mini-1.5", "ai21labs/AI21-Jamba-Large-1.5"}),
        ("Vicuna 1.1", {"lmsys/vicuna-7b-v1.1", "lmsys/vicuna-13b-v1.1"}),
    ],
)
def test_a_version_without_a_size_is_every_size_of_it(typed: str, meant: set[str]):
    assert {m.id for m in spelled(typed, catalog.models())} == meant
