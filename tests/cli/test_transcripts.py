"""A transcript as text, subtitles and JSON; and what `transcribe` refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.types import Segment, Transcript, Word
from freehold.cli import main
from freehold.serve.reports.transcripts import as_srt, as_text, as_vtt, transcript_json

SEGMENTS = (
    Segment(0.0, 2.5, "Ask <not> & go", words=(Word("Ask", 0.0, 1.0), Word("<not>", 1.0, 2.5))),
    Segment(3661.0406, 3662.0, "a --> b"),
)
TRANSCRIPT = Transcript("Ask <not> & go a --> b", SEGMENTS, "en", 3700.0, 3.5)


def test_text_has_a_line_a_segment():
    assert as_text(TRANSCRIPT) == "Ask <not> & go\na --> b\n"


def test_subrip_counts_and_has_commas():
    assert as_srt(TRANSCRIPT) == (
        "1\n00:00:00,000 --> 00:00:02,500\nAsk <not> & go\n\n2\n01:01:01,041 --> 01:01:02,000\na → b\n"
    )


def test_webvtt_escapes_markup():
    assert as_vtt(TRANSCRIPT) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nAsk &lt;not&gt; &amp; go\n\n"
        "01:01:01.041 --> 01:01:02.000\na --&gt; b\n"
    )


def test_json_has_words_where_there_are_any():
    told = transcript_json(TRANSCRIPT)
    assert told["language"] == "en" and told["duration_s"] == 3700.0
    assert [word["text"] for word in told["segments"][0]["words"]] == ["Ask", "<not>"]
    assert "words" not in told["segments"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.wav"], "nothing.wav is not a file"),
        (["{here}", "--words"], "--words needs --json"),
        (["{here}", "--json", "--beside"], "--beside writes text or subtitles"),
        (["{here}", "--format", "docx"], "docx"),
        ([], "FILES"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    here = tmp_path / "a.wav"
    here.write_bytes(b"RIFF")
    assert main.run(["transcribe", "--model", str(tmp_path), *(a.format(here=here) for a in arguments)]) == 2
    assert message in capsys.readouterr().err
