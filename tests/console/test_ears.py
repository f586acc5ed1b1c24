"""The page hears: a microphone, a dropped recording, a transcript. A speech model is played by the test, which answers
the page's own request with the route's events; tests/http/test_audio.py has the route.

Path: microphone button -> AudioWorklet -> microphone.ts -> POST /v1/audio/transcriptions -> the box, or the transcript
"""

from __future__ import annotations

import io
import json
import re
import wave
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from tests.console.conftest import Served
from tests.console.test_accessible import _FOUND, inject

ROUTE, LONG_S = "**/v1/audio/transcriptions", 200.0
SAID = [(0.0, 2.5, "And so, my fellow Americans,"), (2.5, 5.0, "ask not <b>what</b> --> your country")]


def sound(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """Return a tone as WAV."""
    tone = np.sin(np.arange(int(seconds * rate)) * 0.2) * 9000
    with io.BytesIO() as out:
        with wave.open(out, "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(tone.astype("<i2").tobytes())
        return out.getvalue()


def events(said: list[tuple[float, float, str]], duration_s: float = 5.0) -> str:
    """Return the events of a transcript."""
    deltas = [
        {"type": "transcript.text.delta", "delta": text, "start": start, "end": end}
        for start, end, text in said
    ]
    done = {"type": "transcript.text.done", "text": "", "freehold": {"duration_s": duration_s}}
    return "".join(f"data: {json.dumps(each)}\n\n" for each in [*deltas, done]) + "data: [DONE]\n\n"


class Ears:
    """A speech model in the page's list, and what the page sends to it."""

    def __init__(self, page: Any) -> None:
        self.sent: list[bytes] = []
        self.answer: dict[str, Any] = {"body": events(SAID), "content_type": "text/event-stream"}
        page.route("**/v1/models", self._models)
        page.route(ROUTE, self._heard)

    def _models(self, route: Any) -> None:
        listed = route.fetch().json()
        more = {"loaded": True, "bytes": 1, "capabilities": ["transcription"]}
        listed["data"].append({"id": "whisper:base", "object": "model", "freehold": more})
        route.fulfill(json=listed)

    def _heard(self, route: Any) -> None:
        self.sent.append(route.request.post_data_buffer)
        route.fulfill(**self.answer)

    def file(self) -> bytes:
        """Return the WAV file of the latest form."""
        body = self.sent[-1]
        begin = body.index(b"RIFF")
        return body[begin : begin + 8 + int.from_bytes(body[begin + 4 : begin + 8], "little")]


@pytest.fixture
def ears(standing: Served, page: Any) -> Ears:
    ears = Ears(page)
    page.goto(f"{standing.url}/#/chat?model=scripted")
    page.get_by_role("button", name="Attach files, pictures or recordings").wait_for()
    return ears


def choose(page: Any, name: str, data: bytes, kind: str = "audio/wav") -> None:
    file = {"name": name, "mimeType": kind, "buffer": data}
    page.locator("form.composer input[type=file]").set_input_files([file])


def message(page: Any) -> Any:
    return page.get_by_role("textbox", name="Message", exact=True)


def rows(page: Any) -> Any:
    return page.get_by_role("list", name="Recordings").get_by_role("listitem")


def test_the_microphone_makes_a_wav_whose_text_goes_to_the_caret(ears, page):
    page.context.grant_permissions(["microphone"])
    message(page).fill("Said:")
    page.get_by_role("button", name="Record speech").click()
    bar = page.get_by_role("group", name="Recording")
    expect(bar).to_contain_text("of 10:00")
    expect(bar).to_contain_text(re.compile(r"0:0[1-9]"))  # the fake microphone beeps once a second
    assert page.evaluate("() => document.querySelector('.level i') !== null")
    bar.get_by_role("button", name="Done").click()
    expect(message(page)).to_have_value(
        "Said: And so, my fellow Americans, ask not <b>what</b> --> your country"
    )
    expect(message(page)).to_be_focused()
    with wave.open(io.BytesIO(ears.file())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(samples) >= 16_000 and int(np.abs(samples).max()) > 500
    assert b'name="stream"' in ears.sent[0] and b"whisper:base" in ears.sent[0]


def test_escape_drops_a_recording_and_the_microphone_is_off(ears, page):
    page.context.grant_permissions(["microphone"])
    page.evaluate("""() => { const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async wanted => (window.stream = await real(wanted)) }""")
    page.get_by_role("button", name="Record speech").click()
    expect(page.get_by_role("button", name="Done")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Recording")).to_have_count(0)
    assert page.evaluate("() => window.stream.getTracks().every(track => track.readyState === 'ended')")
    expect(message(page)).to_be_focused()
    assert not ears.sent


def test_no_microphone_shows_and_a_recording_is_refused_where_no_model_hears(standing, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{standing.url}/#/chat?model=scripted")
    page.get_by_role("button", name="Camera").wait_for()
    expect(page.get_by_role("button", name="Record speech")).to_have_count(0)
    choose(page, "talk.wav", sound())
    page.get_by_text("talk.wav is a recording, and no model on this server transcribes speech").wait_for()
    context.close()


_DROP = """data => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    transfer.items.add(new File([bytes], "talk.wav", {type: "audio/wav"}));
    for (const name of ["dragenter", "dragover", "drop"]) document.querySelector(".conversation")
        .dispatchEvent(new DragEvent(name, {bubbles: true, cancelable: true, dataTransfer: transfer}));
}"""


def test_a_dropped_recording_becomes_text_and_a_refusal_one_sentence(ears, page):
    refusal = {"error": {"message": "the recording is damaged; convert it", "hint": "convert it"}}
    ears.answer = {"status": 400, "json": refusal}
    page.evaluate(_DROP, b64encode(sound()).decode())
    expect(rows(page)).to_contain_text("the recording is damaged; convert it")
    page.errors.clear()  # the browser reports a 400 by itself
    ears.answer = {
        "body": 'data: {"error": {"message": "the engine ended"}}\n\n',
        "content_type": "text/event-stream",
    }
    rows(page).get_by_role("button", name="Try again").click()
    expect(rows(page)).to_contain_text("the engine ended")
    ears.answer = {"body": events(SAID), "content_type": "text/event-stream"}
    rows(page).get_by_role("button", name="Try again").click()
    expect(message(page)).to_have_value(re.compile("^And so, my fellow"))
    page.get_by_text("The text of talk.wav is in the message.").wait_for()
    page.locator(".notice").get_by_role("button", name="Transcript").click()
    page.get_by_role("dialog", name="talk.wav").wait_for()


def test_a_recording_that_is_heard_can_be_removed_which_ends_its_request(ears, page):
    page.unroute(ROUTE)
    page.route(ROUTE, lambda route: None)  # never answered
    with page.expect_request(ROUTE) as sent:
        choose(page, "talk.wav", sound())
    expect(rows(page)).to_contain_text("Sending")
    with page.expect_event("requestfailed", lambda request: request == sent.value):
        page.get_by_role("button", name="Remove talk.wav").click()
    expect(rows(page)).to_have_count(0)


@pytest.mark.heavy
def test_a_long_transcript_jumps_to_the_second_is_saved_and_summarised(ears, page):
    ears.answer["body"] = events([*SAID, (190.0, 195.0, "the end.")], LONG_S)
    choose(page, "talk.wav", sound(LONG_S, 8000))
    expect(rows(page)).to_contain_text("3:20")
    rows(page).get_by_role("button", name="Transcript").click()
    dialog = page.get_by_role("dialog", name="talk.wav")
    inject(page)
    assert not page.evaluate(_FOUND)
    page.wait_for_function("() => document.querySelector('audio').duration > 199")
    dialog.get_by_role("button", name="3:10 the end.").click()
    page.wait_for_function("() => document.querySelector('audio').currentTime >= 190")
    expect(dialog.get_by_role("button", name="3:10 the end.")).to_have_attribute("aria-current", "true")
    with page.expect_download() as saved:
        dialog.get_by_role("button", name="Save as SRT").click()
    assert saved.value.suggested_filename == "talk.srt"
    subtitles = saved.value.path().read_text(encoding="utf-8")
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:02,500\nAnd so, my fellow Americans,\n\n2\n")
    assert "ask not <b>what</b> → your country" in subtitles
    assert subtitles.endswith("00:03:10,000 --> 00:03:15,000\nthe end.\n")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog.get_by_role("button", name="Copy text").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()").startswith(
        "And so, my fellow Americans,\nask"
    )
    dialog.get_by_role("button", name="Summarise").click()
    expect(message(page)).to_have_value(re.compile("^Summarise this recording"))
    attached = page.get_by_role("list", name="Attached").get_by_role("listitem")
    expect(attached).to_contain_text("talk.txt")
    expect(attached).to_contain_text(re.compile(r"\d+ tokens"))
    expect(rows(page)).to_have_count(0)
