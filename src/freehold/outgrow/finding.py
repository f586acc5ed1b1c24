"""Local accelerators, the engines installed for them, and which engine would run a model fastest.

    here = look(settings.home)              # nothing is asked where no accelerator is: microseconds
    choice = choose(anatomy, "gguf", here, place_here)
    choice.engine, choice.reason, choice.advice

Looks on PATH and in environments of ours. A program is asked (`llama-server --list-devices`) only where a driver
reports an accelerator. Speeds are advisor.fit's predictions; knows no plan and starts no engine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freehold.base.catalog.hardware import Rig
    from freehold.base.config import Settings
    from freehold.choose.advisor.anatomy import Anatomy
    from freehold.choose.advisor.fit import Place
    from freehold.choose.advisor.interval import Interval
    from freehold.choose.advisor.machine import Gpu
    from freehold.outgrow.contract import EngineName

ASKED_S = 10.0  # llama-server's list takes 0.2 to 2 s: the driver wakes the devices
# Files that a driver makes: NVIDIA's, the same within WSL, AMD's compute interface.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_AMD = "0x1002"  # vendor of a PCI device
_DISCRETE = 4 << 30  # bytes of memory of its own; a processor's graphics unit has less
_FITS = 0.9  # of an accelerator's free memory that weights and cache may take
# What a plan calls an engine, what advisor/engines.toml calls it, and the files that it loads. Of equals the first is
# chosen.
ADVISED: dict[EngineName, tuple[str, str]] = {
    "vllm": ("vllm", "safetensors"),
    "sglang": ("sglang", "safetensors"),
    "trtllm": ("tensorrt-llm", "safetensors"),
    "llamacpp": ("llama.cpp", "gguf"),
    "mlx": ("mlx", "safetensors"),
}
# The program of an engine on PATH; those that start as a module are found by a script that their package installs.
_PROGRAMS: dict[EngineName, str] = {
    "llamacpp": "llama-server",
    "mlx": "mlx_lm.server",
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm-serve",
    "ollama": "ollama",
}
_CURES: dict[str, str] = {
    "gguf": "llama-server built with CUDA, ROCm, Metal or Vulkan on PATH",
    "safetensors": "vLLM: freehold deploy MODEL --engine vllm --env DIR makes an environment for it",
    "mlx": "MLX: pip install mlx-lm",
}


@dataclass(frozen=True, slots=True)
class EngineAtHand:
    """An engine that this machine could start: its program and the accelerators it was built for."""

    name: EngineName
    program: Path
    devices: tuple[str, ...] = ()  # as it lists them; empty: not asked, or none
    note: str = ""  # why it does not use an accelerator

    @property
    def python(self) -> Path | None:
        """The interpreter beside its program, or in its first line; None where it is not a package of Python."""
        program = self.program.resolve()
        beside = (program.parent / "python", program.parent / "python3")
        return next((p for p in (*beside, *_interpreter(program)) if p.exists()), None)


@dataclass(frozen=True, slots=True)
class EnginesHere:
    """What was found: accelerators, and engines. No engine is looked for where there is no accelerator."""

    gpus: tuple[Gpu, ...] = ()
    mac: str = ""  # the catalogue's name of an Apple chip
    engines: tuple[EngineAtHand, ...] = ()

    @property
    def accelerated(self) -> bool:
        """Whether anything beside the processor could compute."""
        return bool(self.gpus or self.mac)

    @property
    def title(self) -> str:
        """Its accelerators in words."""
        if self.mac:
            return f"the GPU of {self.mac}"
        names = [g.title for g in self.gpus]
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}" if names else ""

    @property
    def advice(self) -> str:
        """What would use the accelerator, where no engine at hand does."""
        if not self.accelerated or any(e.name in ADVISED and not e.note for e in self.engines):
            return ""
        cures = [_CURES["gguf"], _CURES["mlx" if self.mac else "safetensors"]]
        return f"no engine at hand uses it: {'; or '.join(cures)}"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine runs a model here, and why. `advice`: what would make a found accelerator useful."""

    engine: EngineName
    reason: str
    advice: str = ""
    speeds: dict[str, float] = field(default_factory=dict)  # predicted, tokens a second of one answer


# --- what is here ------------------------------------------------------------------------------------


def driven() -> bool:
    """Return whether a driver of an accelerator is loaded here; some microseconds."""
    from freehold.base.platforms import IS_MAC

    return (IS_MAC and os.uname().machine == "arm64") or any(map(os.path.exists, _DRIVERS))


def look(home: Path, *, always: bool = False) -> EnginesHere:
    """Return accelerators and the engines for them. `always`: also look for engines where there is no accelerator."""
    if not driven():
        return EnginesHere(engines=tuple(at_hand(home, ask=False)) if always else ())
    gpus, mac = accelerators()
    some = bool(gpus or mac)
    return EnginesHere(gpus, mac, tuple(at_hand(home, ask=some)) if some or always else ())


def accelerators() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that a driver reports, and the catalogue's name of an Apple chip."""
    from freehold.base import machine
    from freehold.base.platforms import IS_MAC
    from freehold.choose.advisor.machine import mac_device, nvidia

    mac = (mac_device(machine.cpu_name()) or "apple silicon") if IS_MAC else ""
    return (*nvidia(), *amd()), mac


def amd(root: Path = Path("/sys/class/drm")) -> Iterable[Gpu]:
    """Yield AMD's GPUs with memory of their own, as the kernel lists them."""
    from freehold.choose.advisor.machine import Gpu, gpu_device

    for folder in sorted(root.glob("card[0-9]*/device")):
        if _text_of(folder / "vendor") != _AMD:
            continue
        total, used = (int(_text_of(folder / f"mem_info_vram_{what}") or 0) for what in ("total", "used"))
        if total < _DISCRETE:
            continue
        title = _text_of(folder / "product_name") or "AMD GPU"
        yield Gpu(title, total, total - used, gpu_device(title, total))


def at_hand(home: Path, *, ask: bool) -> Iterable[EngineAtHand]:
    """Yield the engines on PATH, then those in environments of ours; `ask`: what llama-server computes on."""
    seen: set[Path] = set()
    places = [None, *(str(each) for each in environment_folders(home))]
    for place in places:
        for name, word in _PROGRAMS.items():
            program = shutil.which(word, path=place)
            if program is None or Path(program).resolve() in seen:
                continue
            seen.add(Path(program).resolve())
            if name == "llamacpp" and ask:
                yield _llama(Path(program))
            else:
                yield EngineAtHand(name, Path(program))


def named(home: Path, name: EngineName) -> EngineAtHand | None:
    """Return the engine of a name at hand here; of several builds one that uses an accelerator, if there is one."""
    matches = [each for each in at_hand(home, ask=name == "llamacpp" and driven()) if each.name == name]
    return next((each for each in matches if not each.note), matches[0] if matches else None)


def environment_folders(home: Path) -> list[Path]:
    """Return the folders with programs of environments that `deploy --env` made in the data folder."""
    return sorted((home / "environments").glob("*/bin"))


def _interpreter(script: Path) -> Iterator[Path]:
    """Yield the Python that a script's first line names: containers have the two in different folders."""
    try:
        with script.open("rb") as file:
            start = file.readline(4096)
    except OSError:
        return
    words = start[2:].decode(errors="replace").split() if start.startswith(b"#!") else []
    if words and Path(words[0]).name.startswith("python"):
        yield Path(words[0])


def _llama(program: Path) -> EngineAtHand:
    """Ask llama-server for its devices: a build for processors lists none."""
    import subprocess

    command = [str(program), "--list-devices"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ASKED_S, check=False
        )
    except OSError as e:
        return EngineAtHand("llamacpp", program, note=f"{program} --list-devices: {e.strerror}")
    except subprocess.TimeoutExpired:
        return EngineAtHand("llamacpp", program, note=f"{program} --list-devices: no answer in {ASKED_S:g} s")
    # `  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23650 MiB free)`
    lines = run.stdout.partition("Available devices:")[2].splitlines()
    devices = tuple(line.strip() for line in lines if line.startswith("  ") and ": " in line)
    note = "" if devices else f"{program} lists no device: it is a build for processors"
    return EngineAtHand("llamacpp", program, devices, note)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# --- which one ---------------------------------------------------------------------------------------


def place_of(settings: Settings) -> Place:
    """Return this machine with our own engine, as far as it was measured before: nothing is measured now."""
    from freehold.choose.advisor.fit import place_here

    return place_here(settings, lambda structure: "", measure=False)


def choose(
    anatomy: Anatomy, files: str, here: EnginesHere, place: Place, context: int | None = None
) -> EngineChoice:
    """Return the engine that answers fastest by prediction (roofline.preferred); `files`: "gguf", "safetensors".

    `place`: this machine with our own engine. An accelerator that the catalogue does not know has no prediction: it is
    taken where its free memory holds the model.
    """
    if not here.accelerated:
        return EngineChoice("freehold", "no GPU was found")
    from freehold.choose.advisor.fit import Fit, fit
    from freehold.choose.advisor.roofline import preferred

    verdict = fit(anatomy, place, context)
    own = verdict.decode.mid if isinstance(verdict, Fit) else 0.0
    able, useless = _able(anatomy, files, here, context)
    speeds = ({"freehold": own} if own else {}) | {name: speed.mid for name, speed, _ in able}
    if not able:
        advice = "" if useless else _would_help(anatomy, files, here, context)
        reason = useless[0] if useless else f"{here.title} is available, but no engine for it"
        return EngineChoice("freehold", reason, advice, speeds)
    best, speed, why = preferred(able, lambda each: each[1])[0]
    known = speed.mid
    if known and own > known:
        why = f"{own:.0f} tokens/s predicted on the CPU, {known:.0f} by {best} on {here.title}"
        return EngineChoice("freehold", why, speeds=speeds)
    if known:
        beside = f"{own:.0f} on the CPU" if own else "and it does not fit the computer's memory"
        why = f"{known:.0f} tokens/s predicted on {here.title}, {beside}"
    return EngineChoice(best, why, speeds=speeds)


def _able(
    anatomy: Anatomy, files: str, here: EnginesHere, context: int | None
) -> tuple[list[tuple[EngineName, Interval, str]], list[str]]:
    """Return the engines at hand that hold the model on an accelerator, each with its speed (0: not known) and why.

    Also return why others do not: a build without a device, memory.
    """
    able: list[tuple[EngineName, Interval, str]] = []
    useless: list[str] = []
    for engine in here.engines:
        if engine.name not in ADVISED:
            continue
        if engine.note:
            useless.append(engine.note)
        elif ADVISED[engine.name][1] == files:
            speed, why = _on(anatomy, engine.name, here, context)
            if speed is None:
                useless.append(why)
            else:
                able.append((engine.name, speed, why))
    return able, useless


def _on(
    anatomy: Anatomy, engine: EngineName, here: EnginesHere, context: int | None
) -> tuple[Interval | None, str]:
    """Return the speed on the accelerators found (0: not known), and a reason; None: it does not fit."""
    from freehold.base.machine import show_bytes
    from freehold.choose.advisor.fit import Fit, fit, place_on
    from freehold.choose.advisor.interval import Interval

    for rig, free in rigs(here):
        if rig is None:
            if anatomy.weight_bytes <= free * _FITS:
                why = f"the catalogue has no figures of {here.title}; its {show_bytes(free)} free hold the model"
                return Interval.exactly(0.0), why
            continue
        verdict = fit(anatomy, place_on(rig, ADVISED[engine][0]), context)
        if isinstance(verdict, Fit):
            memory = verdict.memory
            if memory.weights + sum(memory.cache.values()) <= free * _FITS:
                return verdict.decode, ""
    free = max((free for _, free in rigs(here)), default=0)
    return None, f"{here.title} with {show_bytes(free)} free does not hold {anatomy.name}"


def rigs(here: EnginesHere) -> Sequence[tuple[Rig | None, int]]:
    """Return the hardware to plan for with its free bytes: one device, then all that are equal; None: unknown."""
    from freehold.base.catalog.hardware import rig

    if here.mac:
        import psutil

        named = None if " " in here.mac else rig(here.mac)
        return [(named, psutil.virtual_memory().available)]
    if not here.gpus:
        return []
    first = max(here.gpus, key=lambda g: g.free)
    equal = [g for g in here.gpus if g.title == first.title]
    counts = [1] if len(equal) == 1 else [1, len(equal)]
    free = sorted((g.free for g in equal), reverse=True)
    return [(rig(f"{n}x{first.device}") if first.device else None, sum(free[:n])) for n in counts]


def _would_help(anatomy: Anatomy, files: str, here: EnginesHere, context: int | None) -> str:
    """Say which engine would use the accelerator, with its predicted speed."""
    wanted: EngineName = "llamacpp" if files == "gguf" else "mlx" if here.mac else "vllm"
    speed, _ = _on(anatomy, wanted, here, context)
    if speed is None:
        return ""
    cure = _CURES["mlx" if wanted == "mlx" else files]
    return f"{cure} would use it" + (f", at about {speed.mid:.0f} tokens/s" if speed.mid else "")
