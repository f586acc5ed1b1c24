"""`freehold transcribe FILE...`: recordings to text or subtitles, on this machine.

Knows files and options; local/speech.py transcribes. The model is loaded in this process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import Ticking, printable
from freehold.base.types import Segment, Transcript
from freehold.cli.chat.starter import speech_model
from freehold.cli.progress import StatusLine
from freehold.cli.shared import held_or_fetched, json_option, offline_option, with_offline, write_beside
from freehold.serve.reports.transcripts import FORMS, transcript_json

if TYPE_CHECKING:
    from freehold.run.local.speech import Speech, TranscriptJournal

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt"}


@click.command("transcribe")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="MODEL",
    help="Whisper model: a name, org/repo, a folder or a whisper.cpp file. Default: speech_model in config.toml, or "
    "whisper:base.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMS)),
    default="text",
    show_default=True,
    help="Output: text or subtitles.",
)
@click.option("--srt", "form", flag_value="srt", help="The same as --format srt.")
@click.option(
    "--language",
    default="",
    metavar="CODE",
    help="Language, such as de. Default: detected from the first speech.",
)
@click.option("--translate", is_flag=True, help="Translate the speech into English.")
@click.option("--words", is_flag=True, help="With --json: add the start and end of each word.")
@click.option("--prompt", default="", metavar="TEXT", help="Names and spellings to expect.")
@click.option("--everything", is_flag=True, help="Transcribe pauses and music too, not only speech.")
@click.option(
    "--beside",
    is_flag=True,
    help="Write FILE.txt, FILE.srt or FILE.vtt next to each FILE instead of printing.",
)
@click.option(
    "--fresh", is_flag=True, help="Start an interrupted recording from the beginning instead of resuming it."
)
@click.option("--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores.")
@offline_option
@json_option
@click.pass_obj
def command(
    settings: Settings,
    files: Sequence[Path],
    model: str | None,
    form: str,
    beside: bool,
    fresh: bool,
    threads: int | None,
    offline: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Transcribe each FILE: WAV, AIFF or FLAC; with freehold[audio] also MP3, M4A, MP4, Ogg and WebM.

    Text is printed as it is transcribed. After Ctrl-C or a crash, the same command resumes a long recording: until
    a recording is finished, its text is kept in a private file in the data folder. Pauses, music and noise are
    skipped, unless you add --everything. A model that is not installed is downloaded first.

    With --json: one object per FILE, {"file": ..., "text": ..., "language": ..., "segments": [...], ...}; after Ctrl-C
    also "interrupted": true.
    """
    from freehold.run.local.speech import TranscriptJournal, load_speech
    from freehold.run.store import Store

    if options["words"] and not as_json:
        raise UsageError("--words needs --json, which has a place for them", "add --json")
    if beside and as_json:
        raise UsageError("--beside writes text or subtitles, not JSON", "leave out one of them")
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is not a file", "give the path of a recording")
    store = Store(with_offline(settings, offline))
    ref = held_or_fetched(store, model or speech_model(settings, store), speech=True)
    with Ticking(f"loading {ref.name}"):
        speech = load_speech(ref, threads=threads)
    with speech:
        for path in files:
            with TranscriptJournal(settings.home / "transcribe", fresh=fresh) as journal:
                _one(speech, path, form, beside, as_json, options, journal)


def _one(
    speech: Speech,
    path: Path,
    form: str,
    beside: bool,
    as_json: bool,
    options: dict[str, Any],
    journal: TranscriptJournal,
) -> None:
    """Transcribe a recording and print its text; after Ctrl-C, the text so far."""
    live = form == "text" and not beside and not as_json
    segments: list[Segment] = []

    def kept() -> str:
        printed = "nothing was written" if beside else "the text so far is printed"
        return f"{printed}; the same command resumes {path.name}" if journal.kept else printed

    with StatusLine(kept) as line:
        line.begin(f"transcribing {path.name}")

        def heard(segment: Segment, share: float) -> None:
            if not segments and journal.taken:
                line.note(f"{path.name}: resumed where it was interrupted; --fresh starts from the beginning")
            segments.append(segment)
            if live:
                line.blank()
                click.echo(printable(segment.text))
            line.show(f"{path.name}: {share:.0%}")

        try:
            transcript = speech.transcribe(
                path,
                language=options["language"],
                task="translate" if options["translate"] else "transcribe",
                prompt=options["prompt"],
                words=options["words"],
                detect=not options["everything"],
                on_segment=heard,
                journal=journal,
            )
        except KeyboardInterrupt:
            line.blank()
            if segments and not beside:
                heard_of = _partial(segments, options["language"])
                _told(path, heard_of, form, beside, as_json, live, interrupted=True)
            raise
    _told(path, transcript, form, beside, as_json, live)
    journal.remove()


def _partial(segments: Sequence[Segment], language: str) -> Transcript:
    """Return a transcript up to the last segment that was heard."""
    text = " ".join(segment.text for segment in segments)
    return Transcript(
        text, tuple(segments), language, segments[-1].end, sum(s.end - s.start for s in segments)
    )


def _told(
    path: Path, transcript: Transcript, form: str, beside: bool, as_json: bool, live: bool, **more: Any
) -> None:
    if as_json:
        click.echo(json.dumps({"file": str(path), **transcript_json(transcript), **more}))
    elif beside:
        target = write_beside(str(path.with_suffix(SUFFIXES[form])), FORMS[form](transcript))
        click.echo(f"wrote {target}", err=True)
    elif not live:
        click.echo(printable(FORMS[form](transcript)), nl=False)
    if not transcript.segments:
        click.echo(f"{path}: no speech found", err=True)
