"""`freehold transcribe FILE...`: recordings to text or subtitles, on this machine.

Knows files and options; local/speech.py hears. The model is loaded in this process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import printable
from freehold.base.types import Segment, Transcript
from freehold.cli.progress import StatusLine
from freehold.cli.shared import held_or_fetched, json_option, offline_option, with_offline, write_beside
from freehold.serve.reports.transcripts import FORMS, transcript_json

if TYPE_CHECKING:
    from freehold.run.local.speech import Speech

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt"}


@click.command("transcribe")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="FOLDER",
    help="A Whisper: a folder with its model.safetensors, or CTranslate2's model.bin.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMS)),
    default="text",
    show_default=True,
    help="Print text, or subtitles.",
)
@click.option("--srt", "form", flag_value="srt", help="The same as --format srt.")
@click.option(
    "--language", default="", metavar="CODE", help="Language, such as de; default: that of the first speech."
)
@click.option("--translate", is_flag=True, help="Translate to English.")
@click.option("--words", is_flag=True, help="With --json: the times of each word.")
@click.option("--prompt", default="", metavar="TEXT", help="Names and spellings to expect.")
@click.option("--everything", is_flag=True, help="Hear pauses and music too, instead of speech alone.")
@click.option("--beside", is_flag=True, help="Write FILE.txt, FILE.srt or FILE.vtt beside each FILE instead.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores.")
@offline_option
@json_option
@click.pass_obj
def command(
    settings: Settings,
    files: Sequence[Path],
    model: str,
    form: str,
    beside: bool,
    threads: int | None,
    offline: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Print what is said in each FILE, a recording in WAV.

    Text is printed as it is heard; Ctrl-C keeps what was printed. Pauses, music and noise are left out, unless
    --everything is given.

    With --json: one object per FILE, {"file": ..., "text": ..., "language": ..., "segments": [...], ...}.
    """
    from freehold.run.local.speech import load_speech
    from freehold.run.store import Store

    if options["words"] and not as_json:
        raise UsageError("--words needs --json, which has a place for them", "add --json")
    if beside and as_json:
        raise UsageError("--beside writes text or subtitles, not JSON", "leave out one of them")
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is not a file", "give the path of a recording")
    folder = held_or_fetched(Store(with_offline(settings, offline)), model).path
    with load_speech(folder, threads=threads) as speech:
        for path in files:
            _one(speech, path, form, beside, as_json, options)


def _one(speech: Speech, path: Path, form: str, beside: bool, as_json: bool, options: dict[str, Any]) -> None:
    live = form == "text" and not beside and not as_json
    with StatusLine("what was printed is kept" if live else "nothing was written") as line:
        line.begin(f"listening to {path.name}")

        def heard(segment: Segment, share: float) -> None:
            if live:
                line.blank()
                click.echo(printable(segment.text))
            line.show(f"{path.name}: {share:.0%}")

        transcript = speech.transcribe(
            path,
            language=options["language"],
            task="translate" if options["translate"] else "transcribe",
            prompt=options["prompt"],
            words=options["words"],
            detect=not options["everything"],
            on_segment=heard,
        )
    _told(path, transcript, form, beside, as_json, live)


def _told(path: Path, transcript: Transcript, form: str, beside: bool, as_json: bool, live: bool) -> None:
    if as_json:
        click.echo(json.dumps({"file": str(path), **transcript_json(transcript)}))
    elif beside:
        target = write_beside(str(path.with_suffix(SUFFIXES[form])), FORMS[form](transcript))
        click.echo(f"wrote {target}", err=True)
    elif not live:
        click.echo(printable(FORMS[form](transcript)), nl=False)
    if not transcript.segments:
        click.echo(f"{path}: no speech was heard", err=True)
