"""`freehold doctor`: shows CPU, memory, kernels and model stores in use. Makes no network request.

Only reads: CPU, kernel table, threads, memory, GPUs and engines for them, stores, versions. With --kernels: each
weight format on each kernel table. With --verify: every model file and pack against its checksums.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from typing import Any

import click

from freehold.base.config import Settings
from freehold.cli.shared import json_option
from freehold.run.store.space import human

_NO_WEIGHTS = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64")  # activations and plain integers
_CODE_BITS = 8 + 32 / 16  # an int8 code, and a float32 scale for sixteen
_PACKAGES = ("freehold", "numpy", "tokenizers", "jinja2", "click", "prompt-toolkit", "httpx2")


class _Group(click.Group):
    """A group whose subcommands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["compat", "providers"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "compat":
            from freehold.cli.clients.compat import command as verb
        elif cmd_name == "providers":
            from freehold.cli.clients.providers import command as verb
        else:
            return None
        return verb


@click.group("doctor", cls=_Group, invoke_without_command=True)
@click.option(
    "--kernels", is_flag=True, help="Show which kernel computes each weight type on each instruction set."
)
@click.option(
    "--verify",
    is_flag=True,
    help="Check all model files and packs against their checksums; exit 1 on damage.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, kernels: bool, verify: bool, as_json: bool) -> None:
    """Show CPU, memory, kernels, GPUs, engines and model stores in use; makes no network requests.

    `doctor compat` runs the installed SDKs against a server; `doctor providers` calls each provider of a gateway.toml.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings: Settings = ctx.obj
    if verify:
        from freehold.cli.report.verify import verify as compare

        compare(settings, as_json)
        return
    facts = kernel_routes() if kernels else machine(settings)
    if as_json:
        click.echo(json.dumps(facts))
    elif kernels:
        _print_routes(facts)
    else:
        for name, value in facts.items():
            for i, line in enumerate(_lines(name, value)):
                click.echo(f"{name.replace('_', ' ') if i == 0 else '':<12} {line}")


def machine(settings: Settings) -> dict[str, Any]:
    """Collect the facts, in the order they are printed."""
    import psutil

    from freehold import _native as native
    from freehold.base import machine as here
    from freehold.base.machine import page_sizes
    from freehold.base.platforms import IS_MAC
    from freehold.cli.report.verify import notes

    chip = here.processor()
    return {
        "cpu": {"name": here.cpu_name(), "system": platform.platform(), "features": chip.features},
        "kernels": {
            "in_use": native.isa(),
            "runnable": native.isas(),
            "forced": os.environ.get("FREEHOLD_ISA"),
        },
        "threads": {
            "usable": here.default_threads(),
            "logical": os.cpu_count(),
            "cores": [asdict(kind) for kind in chip.kinds],
            "cgroup_cpus": here.cpu_quota(),
        },
        "memory": {
            "total": psutil.virtual_memory().total,
            "available": here.available_bytes(),
            "cgroup_available": here.cgroup_available_bytes(),
            "pages": asdict(page_sizes()),
        },
        "pictures": _pictures(),
        "engines": _engines(settings),
        "home": _home(settings),
        "stores": _stores(settings),
        "versions": {"python": platform.python_version(), **_versions()},
        "notes": notes(chip, native.isa(), platform.machine(), IS_MAC),
    }


def _pictures() -> dict[str, Any]:
    """Return what decodes pictures, and whether each of them is opened in a process that is closed in."""
    from freehold.base.platforms import can_confine

    formats = ["PNG", "GIF"]
    try:
        from PIL import features
    except ImportError:
        return {"pillow": None, "formats": [], "closed_in": can_confine()}
    for name, feature in (("JPEG", "jpg"), ("WebP", "webp"), ("AVIF", "avif")):
        formats += [name] if features.check(feature) else []
    return {"pillow": metadata.version("pillow"), "formats": formats, "closed_in": can_confine()}


def _engines(settings: Settings) -> dict[str, Any]:
    """Return the accelerators, and the engines that `--engine auto` chooses from."""
    from freehold.outgrow.finding import look

    here = look(settings.home, always=True)
    return {
        "accelerator": here.title,
        "gpus": [asdict(gpu) for gpu in here.gpus],
        "mac": here.mac,
        "found": [{**asdict(each), "program": str(each.program)} for each in here.engines],
        "advice": here.advice,
    }


def _home(settings: Settings) -> dict[str, Any]:
    import shutil

    place = settings.home
    while not place.exists() and place != place.parent:
        place = place.parent
    return {"path": str(settings.home), "free": shutil.disk_usage(place).free, "offline": settings.offline}


def _stores(settings: Settings) -> list[dict[str, Any]]:
    from freehold.run.store import Store

    models = Store(settings).list()
    roots = [("freehold", settings.home), *settings.foreign_roots]
    rows = []
    for owner, root in roots:
        if root.is_dir():
            held = [
                m for m in models if m.owner == owner and (m.path.is_relative_to(root) or owner == "freehold")
            ]
            rows.append(
                {"owner": owner, "path": str(root), "models": len(held), "bytes": sum(m.held for m in held)}
            )
    return rows


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def kernel_routes() -> dict[str, Any]:
    """Return for each weight type its bits in the file and packed, and how each kernel table computes it."""
    from freehold import _native as native
    from freehold.run.formats.blocks import has_codes
    from freehold.run.formats.weight_types import QuantType, block_layout

    isas = native.isas()
    routes = {row[0]: (row[2], row[4]) for row in native.type_routes()}
    rows = []
    for type in QuantType:
        if type.name in _NO_WEIGHTS:
            continue
        other = ("converted to int8 codes", _CODE_BITS) if has_codes(type) else ("converted to F32", 32.0)
        route, packed = routes.get(type.name, other)
        layout = block_layout(type)
        row = {"type": type.name, "bits_in_file": 8 * layout.bytes / layout.elems, "bits_packed": packed}
        rows.append({**row, "route": dict.fromkeys(isas, route)})
    return {"isas": isas, "in_use": native.isa(), "types": rows}


def _print_routes(facts: dict[str, Any]) -> None:
    isas = facts["isas"]
    click.echo(f"{'type':<10}{'file':>8}{'packed':>9}{'added':>9}  " + "  ".join(f"{i:<22}" for i in isas))
    for row in facts["types"]:
        added = row["bits_packed"] - row["bits_in_file"]
        routes = "  ".join(f"{row['route'][i]:<22}" for i in isas)
        bits = f"{row['bits_in_file']:>8.4g}{row['bits_packed']:>9.4g}{added:>+9.4g}"
        click.echo(f"{row['type']:<10}{bits}  {routes}".rstrip())
    click.echo(f"bits per weight; {facts['in_use']} is in use", err=True)


def _lines(name: str, value: Any) -> list[str]:
    """Return one group of facts as lines."""
    if name == "cpu":
        return [value["name"], value["system"], *filter(None, [", ".join(value["features"])])]
    if name == "kernels":
        forced = f", forced by FREEHOLD_ISA={value['forced']}" if value["forced"] else ""
        return [f"{value['in_use']} in use{forced}; this machine runs {', '.join(value['runnable'])}"]
    if name == "threads":
        quota = f", control group grants {value['cgroup_cpus']:g}" if value["cgroup_cpus"] else ""
        return [f"{value['usable']} usable of {value['logical']} logical{quota}", *_cores(value["cores"])]
    if name == "memory":
        limit = value["cgroup_available"]
        cut = f" (control group leaves {human(limit)})" if limit is not None else ""
        pages = value["pages"]
        huge = f", huge ones of {pages['huge'] >> 20} MiB: {pages['mode']}" if pages["huge"] else ""
        return [
            f"{human(value['available'])} available of {human(value['total'])}{cut}",
            f"pages of {pages['page'] >> 10} KiB{huge}",
        ]
    if name == "pictures":
        return _decoders(value)
    if name == "engines":
        gpus = [f"{g['title']}, {human(g['free'])} free of {human(g['memory'])}" for g in value["gpus"]]
        here = gpus or [value["accelerator"] or "no GPU was found"]
        return [*here, *map(_engine, value["found"]), *filter(None, [value["advice"]])]
    if name == "home":
        return [f"{value['path']}, {human(value['free'])} free" + (", offline" if value["offline"] else "")]
    if name == "stores":
        lines = [f"{s['owner']}: {s['models']} models, {human(s['bytes'])} at {s['path']}" for s in value]
        return lines or ["none found"]
    if name == "notes":
        return value
    return [", ".join(f"{k} {v}" for k, v in value.items())]


def _decoders(pictures: dict[str, Any]) -> list[str]:
    if pictures["pillow"] is None:
        return ["no decoder: pip install 'freehold[eyes]' installs Pillow"]
    closed = (
        "each picture is decoded in a process without access to files or the network"
        if pictures["closed_in"]
        else "each picture is decoded in a separate process with limited time and memory; this system has no sandbox"
    )
    return [f"Pillow {pictures['pillow']}: {', '.join(pictures['formats'])}", closed]


def _engine(engine: dict[str, Any]) -> str:
    told = ", ".join(engine["devices"]) or engine["note"]
    return f"{engine['name']}: {engine['program']}" + (f" ({told})" if told else "")


def _cores(kinds: list[dict[str, Any]]) -> list[str]:
    """Return a line about kinds of cores where there are several."""
    if len(kinds) < 2:
        return []
    used = [f"{kind['count']} {kind['name']}" for kind in kinds if kind["computes"]]
    idle = [f"{kind['count']} {kind['name']}" for kind in kinds if not kind["computes"]]
    left = f"; too slow for these, not used: {', '.join(idle)}" if idle else ""
    return [f"cores that compute: {', '.join(used)}{left}"]
