"""Five real clients, unmodified, with a picture: a tiny model that sees answers, and one of text says which would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from freehold.base.config import Settings
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from tests.http.conftest import Running, start
from tests.server_clients.talking import SEEING

# langchain-openai and ollama leave their connections to the collector.
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
# A short greedy answer in each client's words.
SHORT: dict[str, dict[str, Any]] = {
    "openai": {"max_tokens": 6, "temperature": 0},
    "anthropic": {"max_tokens": 6, "extra_body": {"temperature": 0}},
    "ollama": {"num_predict": 6, "temperature": 0},
    "langchain": {"max_tokens": 6, "temperature": 0},
    "langchain-ollama": {"num_predict": 6, "temperature": 0},
}
REFUSALS = (openai.BadRequestError, anthropic.BadRequestError, ollama.ResponseError)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two tiny models: `sees`, and `text`."""
    home = tmp_path_factory.mktemp("clients")
    refs = {}
    for name, family in (("sees", "qwen3_vl"), ("text", "qwen3")):
        folder = make.write_safetensors(make.config(family), home / name)
        files = tuple(sorted(folder.iterdir()))
        size = sum(file.stat().st_size for file in files)
        refs[name] = ModelRef(name, folder, "safetensors", "", size, "user", "", "", files)
    options = EngineOptions(threads=1, cache_bytes=8 << 20)

    def engines(fakes: Any) -> EngineModels:
        return EngineModels(Store(Settings(home)), options, paths=refs)

    running = start(home / "server", around=engines, offline=True)
    yield running
    running.end()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", SEEING)
def test_a_picture_is_answered_and_counted_and_a_second_turn_refers_to_it(
    served: Running, client: str, stream: bool
):
    talk = SEEING[client](served.url, "sees", stream=stream)
    blind = SEEING[client](served.url, "sees", stream=stream)
    first, plain = (
        talk.ask("What is it?", image=True, **SHORT[client]),
        blind.ask("What is it?", **SHORT[client]),
    )
    assert first.text and first.made == 6
    assert first.prompt >= plain.prompt + 4 and first.text != plain.text
    second = talk.ask("And now?", **SHORT[client])
    assert second.prompt > first.prompt and second.made == 6


def test_all_clients_see_the_same_picture(served: Running):
    """Every protocol gives the model one prompt, whatever it calls a picture."""
    answers = {
        client: talk(served.url, "sees", stream=False).ask("What is it?", image=True, **SHORT[client])
        for client, talk in SEEING.items()
    }
    own = answers.pop("langchain-ollama")  # puts a line break before a text
    assert len({(answer.text, answer.prompt) for answer in answers.values()}) == 1
    assert own.prompt == answers["ollama"].prompt + 1


@pytest.mark.parametrize("client", SEEING)
def test_a_model_of_text_answers_400_and_names_what_would_see(served: Running, client: str):
    SEEING[client](served.url, "sees", stream=False).ask("hi", **SHORT[client])  # now it is in memory
    with pytest.raises(REFUSALS) as refused:
        SEEING[client](served.url, "text", stream=False).ask("What is it?", image=True, **SHORT[client])
    error: Any = refused.value
    assert error.status_code == 400
    assert "text cannot read pictures" in str(error) and "sees can" in str(error)
    assert SEEING[client](served.url, "text", stream=False).ask("hi", **SHORT[client]).made == 6
