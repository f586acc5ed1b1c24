"""`freehold fuse MODEL+ADAPTER -o OUT`: an adapter in a model's weights, one file, checked before it is kept.

Knows options and lines of text; adapt.fuse does the work. MODEL must be here already: nothing is fetched.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from freehold.adapt.settings import FuseSettings
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine, result_of
from freehold.cli.quantize import divergence_rows, spent_rows, watching_on
from freehold.cli.shared import json_option, pairs
from freehold.cli.training import LINES, out_option
from freehold.run.store.space import human


@click.command("fuse")
@click.argument("model", metavar="MODEL+ADAPTER[+ADAPTER]")
@out_option
@click.option(
    "--test",
    type=LINES,
    help="Test items, as for finetune: answered by MODEL+ADAPTER and by the result.",
)
@setting_options(FuseSettings, "quant", "bound", "calibrate", "tokens", "until", "threads", unset=True)
@click.option("--fresh", is_flag=True, help="Discard the files of an interrupted run and start again.")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    out: Path,
    test: Path | None,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge an adapter into MODEL's weights, write the result to the folder OUT, and check it.

    A GGUF becomes OUT/model.gguf, with MODEL's weight types or --quant. A safetensors folder becomes a safetensors
    folder with the same types. The result is compared with MODEL+ADAPTER on a text that is not used for training, and
    on the answers to 24 factual questions and to --test. If it differs by more than --bound, it is deleted.

    Several adapters are all merged. An adapter that was trained on top of another one contains it: name only the last.

    After Ctrl-C or a crash, the same command continues and gives the same bytes. Run the result by its path:
    freehold run OUT/model.gguf

    With --json, prints the receipt.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # texts go side by side; NumPy's threads wait spinning
    from freehold.adapt.fuse import fuse
    from freehold.adapt.registry import note
    from freehold.choose.choosing import company_facts

    if out.suffix == ".gguf":
        raise UsageError(f"-o {out} must be a folder", f"name one: -o {out.stem} makes {out.stem}/model.gguf")
    chosen = FuseSettings(**{name: value for name, value in options.items() if value is not None})
    note(settings.home, "fuse", out)
    with StatusLine(result_of(out)) as line:
        line.begin(f"reading {model}")
        record = fuse(
            model,
            out,
            chosen,
            test=test,
            facts=company_facts(settings, {}),
            fresh=fresh,
            config=settings,
            watching=watching_on(line),
        )
    if as_json:
        click.echo(json.dumps(record))
    else:
        pairs(_rows(out, record))


def _rows(out: Path, record: dict[str, Any]) -> list[tuple[str, str]]:
    result, licences = record["result"], ", ".join(record["licence"]["licences"])
    share = result["bytes"] / result["source_bytes"]
    return [
        ("model", str(out / result["file"]) if result["file"] else str(out)),
        ("size", f"{human(result['bytes'])}, {share:.0%} of the source's {human(result['source_bytes'])}"),
        ("type", result["type"]),
        ("chain", " -> ".join([*(Path(str(each["path"])).name for each in record["chain"]), out.name])),
        *divergence_rows(record["divergence"]),
        *_answer_rows(record["answers"], record["bound"]),
        *_control_rows(record),
        *spent_rows(record["cpu_seconds_by_part"]),
        ("licence", f"{licences or 'not known'}: {record['licence']['answer']} to be changed"),
        ("receipt", str(out / "receipt.json")),
    ]


def _answer_rows(answers: dict[str, Any], bound: float) -> list[tuple[str, str]]:
    rows = [("bound", f"{bound:g} nats per token")]
    if answers["divergence"] is None:
        return rows
    apart, moved = answers["divergence"]["mean"], answers["adapter_moved"]["mean"]
    text = f"{apart:.4f} nats per token at {answers['questions']} answers; the adapter moved these by {moved:.4f}"
    return [("answers", text), *rows]


def _control_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if exam := record["exam"]:
        rows.append(
            (
                "test",
                f"{exam['after']:.1%} of {exam['marked']} right ({exam['before']:.1%} unfused; p = {exam['p']:.2g})",
            )
        )
    if control := record["control"]:
        rows.append(
            ("facts", f"{control['after']} of {control['facts']} known ({control['before']} unfused)")
        )
    return rows
