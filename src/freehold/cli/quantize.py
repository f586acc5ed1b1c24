"""`freehold quantize MODEL -o OUT`: a model's weights in fewer bits, as a GGUF, with a receipt.

Knows options and lines of text; adapt.quantize does the work. MODEL must be here already: nothing is fetched.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.adapt.settings import QuantizeSettings
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import Ticking
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine, result_of
from freehold.cli.shared import json_option, pairs
from freehold.cli.training import BASE, out_option
from freehold.run.store.space import human

if TYPE_CHECKING:
    from freehold.adapt.evals.divergence import DivergenceCounter
    from freehold.adapt.quantize.quantising import SpentSeconds, Watching
    from freehold.adapt.quantize.recipes import TensorChoice


@click.command("quantize")
@click.argument("model", metavar=BASE)
@out_option
@setting_options(
    QuantizeSettings,
    *(
        "bits",
        "quant",
        "target_bytes",
        "portable",
        "calibrate",
        "tokens",
        "report",
        "text",
        "until",
        "threads",
    ),
    unset=True,
)
@click.option("--fresh", is_flag=True, help="Discard the files of an interrupted run and start again.")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    out: Path,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantise MODEL into the folder OUT: model.gguf, and receipt.json, which records how it was made.

    MODEL+ADAPTER quantises MODEL with the adapter in its weights; freehold fuse also checks the result.

    If a type does not fit a tensor's rows, the tensor gets the type that llama.cpp would use, and a note names it.
    After Ctrl-C or a crash, the same command continues and gives the same bytes. Run the result by its path:
    freehold run OUT/model.gguf

    With --json, prints the receipt.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # texts go side by side; NumPy's threads wait spinning
    with Ticking("starting"):
        from freehold.adapt.quantize.planning import QuantizeRequest
        from freehold.adapt.quantize.quantising import quantise
        from freehold.adapt.registry import note
        from freehold.choose.choosing import company_facts
        from freehold.run.store import Store
        from freehold.run.store.naming import adapted

    wishes = {name: value for name, value in options.items() if value is not None}
    for name in ("text", "until"):
        if name in wishes and not options["report"]:
            raise UsageError(f"--{name} is for a report", f"add --report, or leave out --{name}")
    if out.suffix == ".gguf":
        raise UsageError(f"-o {out} must be a folder", f"name one: -o {out.stem} makes {out.stem}/model.gguf")
    request = QuantizeRequest(**wishes, fresh=fresh, facts=company_facts(settings, {}))
    if "tokens" in wishes and not request.texts:
        raise UsageError(
            f"{request.name or 'a portable mix'} is written without calibration, which --tokens bounds",
            "add --calibrate default, or leave out --tokens",
        )
    base = adapted(Store(settings), model)
    ref, adapters = base.ref, [each.path for each in base.adapters]
    note(settings.home, "quantize", out)
    with StatusLine(result_of(out)) as line:
        line.begin(f"reading {ref.name}")
        record = quantise(ref, out, request, settings, watching_on(line), adapters=adapters)
    if as_json:
        click.echo(json.dumps(record))
    else:
        pairs(_rows(out, record))


def watching_on(line: StatusLine) -> Watching:
    """Return what shows the progress of a quantisation on a line."""
    from freehold.adapt.quantize.quantising import SpentSeconds, Watching

    spent = SpentSeconds()
    progress = _QuantizeProgress(line, spent)
    return Watching(
        on_note=line.note,
        on_group=progress.group,
        on_tensor=progress.tensor,
        on_text=progress.text,
        on_block=progress.block,
        spent=spent,
    )


@dataclass(frozen=True, slots=True)
class _QuantizeProgress:
    """What a line of progress says of each part of the work."""

    line: StatusLine
    spent: SpentSeconds

    def group(self, done: int, total: int, name: str) -> None:
        self.line.show(f"measured {done} of {total} groups of tensors, now {name}")

    def tensor(self, done: int, total: int, choice: TensorChoice) -> None:
        name, kind = choice.tensor.name, choice.type.name
        self.line.show(f"{done} of {total} tensors, now {name} as {kind}{self._seconds()}")

    def text(self, layer: int, layers: int, done: int, texts: int) -> None:
        self.line.show(f"calibrating layer {layer + 1} of {layers}: {done} of {texts} texts{self._seconds()}")

    def block(self, done: int, total: int, counts: DivergenceCounter) -> None:
        mean, spread = counts.result().mean, counts.half_width()
        self.line.show(f"report: {done} of at most {total} windows, {mean:.4f} ± {spread:.4f} nat")

    def _seconds(self) -> str:
        seconds = self.spent.so_far()
        words = [
            f"{part} {seconds[part]:,.0f}"
            for part in ("calibration", "encoding")
            if seconds.get(part, 0) >= 1
        ]
        return f"; processor seconds: {', '.join(words)}" if words else ""


def _rows(out: Path, record: dict[str, Any]) -> list[tuple[str, str]]:
    result = record["result"]
    share, licences = result["bytes"] / result["source_bytes"], ", ".join(record["licence"]["licences"])
    types = ", ".join(f"{name} {human(n)}" for name, n in result["bytes_by_type"].items())
    return [
        ("file", str(out / result["file"])),
        ("size", f"{human(result['bytes'])}, {share:.0%} of the source's {human(result['source_bytes'])}"),
        ("type", _type(result)),
        ("holds", types),
        *_mix_rows(record.get("mix")),
        *divergence_rows(record.get("divergence")),
        *speed_rows(record.get("speed")),
        *spent_rows(record["cpu_seconds_by_part"]),
        ("licence", f"{licences or 'not known'}: {record['licence']['answer']} to be changed"),
        ("receipt", str(out / "receipt.json")),
    ]


def _type(result: dict[str, Any]) -> str:
    bits = result["bits_a_weight"]
    return result["type"] if bits is None else f"{result['type']}, {bits:.2f} bits per weight where encoded"


def _mix_rows(mix: dict[str, Any] | None) -> list[tuple[str, str]]:
    if mix is None:
        return []
    most = sorted(mix["sensitivity"].items(), key=lambda item: -item[1])[:4]
    return [
        ("predicted", f"{mix['predicted_divergence']:.4f} nats per token from the source"),
        ("", f"coarse alone, in nats: {', '.join(f'{name} {nat:.3f}' for name, nat in most)}"),
    ]


def divergence_rows(divergence: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a report says of a divergence from the source."""
    if divergence is None:
        return []
    early = ", stopped early" if divergence["stopped_early"] else ""
    return [
        (
            "divergence",
            f"{divergence['mean']:.4f} nats per token ({divergence['low']:.4f} to {divergence['high']:.4f}) "
            "from the source; "
            f"{divergence['tokens']:,} tokens{early}",
        ),
        (
            "",
            f"median {divergence['median']:.4f}, p90 {divergence['p90']:.3f}, p95 {divergence['p95']:.3f}, "
            f"p99 {divergence['p99']:.3f}, p99.9 {divergence['p999']:.3f}, maximum {divergence['max']:.2f}",
        ),
        (
            "",
            f"same most probable token {divergence['same_top']:.1%}; probability of the text's token "
            f"± {divergence['rms_delta_p']:.1%} (RMS)",
        ),
        (
            "perplexity",
            f"{divergence['perplexity']:.3f}, {divergence['perplexity_ratio']:.4f} ± "
            f"{divergence['perplexity_ratio_error']:.4f} times the source's",
        ),
    ]


def speed_rows(speed: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the decode speeds of a result and its source."""
    if speed is None:
        return []
    return [
        (
            "decode" if name == "result" else "",
            f"{rates['measured_tok_s']:.1f} tok/s measured{_predicted(rates)}"
            f"{', the source' if name == 'source' else ''}",
        )
        for name, rates in sorted(speed.items())
    ]


def spent_rows(spent: dict[str, float]) -> list[tuple[str, str]]:
    """Return what the processor seconds were spent on."""
    parts = [f"{seconds:,.0f} s {part}" for part, seconds in spent.items() if seconds >= 1]
    return [("processor", ", ".join(parts))] if parts else []


def _predicted(rates: dict[str, float]) -> str:
    if "predicted_tok_s" not in rates:
        return ""
    low, high = rates["predicted_low_tok_s"], rates["predicted_high_tok_s"]
    return f", {rates['predicted_tok_s']:.1f} predicted ({low:.1f} to {high:.1f})"
