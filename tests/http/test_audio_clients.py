"""Requests for speech as Open WebUI and LangChain send them, field by field; docs/guides/clients names both.

Sources: open-webui's routers/audio.py, with and without `verbose_json`; langchain-community's OpenAIWhisperParser.
"""

from __future__ import annotations

import io

import openai
import pytest

from tests.http.test_audio import HEARS, SAID, SOUND, heard

requests = pytest.importorskip("requests")
KEY = "none"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"language": "en"},
        {"response_format": "verbose_json", "timestamp_granularities[]": "segment"},
    ],
)
def test_open_webui_s_form_is_answered_with_text(serving, more):
    server = serving(HEARS)
    with io.BytesIO(SOUND) as file:
        answer = requests.post(
            f"{server.url}/v1/audio/transcriptions",
            headers={"Authorization": f"Bearer {KEY}"},
            files={"file": ("8e3f.wav", file)},
            data={"model": "fake:1b", **more},
            timeout=60,
        )
    answer.raise_for_status()
    body = answer.json()
    assert body["text"] == SAID and heard(server).data == SOUND
    assert ("segments" in body) == ("response_format" in more)
    assert all(each["text"] and each["end"] > each["start"] for each in body.get("segments", []))


def test_langchain_s_parser_sends_a_part_that_has_a_name(serving):
    server = serving(HEARS)
    part = io.BytesIO(SOUND)
    part.name = "talk_part_0.mp3"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        text = client.audio.transcriptions.create(model="fake:1b", file=part).text
    assert text == SAID and heard(server).data == SOUND
