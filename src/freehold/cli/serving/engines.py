"""Which engine computes a stored model: ours, or another where an accelerator and an engine for it are found.

Without a driver of an accelerator nothing is imported and no program is started. Knows choices and words; predictions
are outgrow/finding.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.serving.logs import tell
from freehold.outgrow.finding import EngineChoice, choose, look, place_of
from freehold.run.store import ModelRef, Store

if TYPE_CHECKING:
    from freehold.cli.deploying.serving import StartedDeployments

OURS = "freehold"
# Options that our engine alone has; with one of them it computes.
OWN = {
    "kv_type": "--kv-type",
    "speculate": "--no-speculation",
    "draft": "--draft",
    "adapters": "--adapter",
    "threads": "--threads",
    "eyes": "--eyes",
    "image_tokens": "--image-tokens",
    "allow_paging": "--allow-paging",
    "cache_size": "--cache-size",
    "target_itl": "--target-itl",
}


@dataclass(frozen=True, slots=True)
class EngineWish:
    """Which engine was asked for, with the context; `own`: an option was given that our engine alone has."""

    engine: str
    context: int | None = None
    own: str = ""


def engine_for(settings: Settings, ref: ModelRef, wish: EngineWish) -> EngineChoice:
    """Return the engine for a stored model; with its reason, printed where it is not ours by default."""
    if wish.engine == OURS:
        return EngineChoice(OURS, "asked for")
    if wish.engine != "auto":
        if wish.own:
            raise UsageError(f"{wish.own} is for Freehold's engine, and --engine {wish.engine} is another")
        return EngineChoice(wish.engine, "asked for")  # type: ignore[arg-type]
    if ref.overlay is not None or wish.own:
        return EngineChoice(OURS, f"{wish.own or 'a made model'} needs it")
    here = look(settings.home)
    if not here.accelerated:
        return EngineChoice(OURS, "no GPU was found")
    from freehold.choose.advisor.file_anatomy import from_file

    files = "gguf" if ref.path.is_file() else "safetensors"
    return choose(from_file(ref.path, ref.rounding), files, here, place_of(settings), wish.context)


def told(choice: EngineChoice, wanted: str) -> list[str]:
    """Return the lines about a choice: none on a machine without an accelerator."""
    if wanted != "auto" or (choice.engine == OURS and not (choice.speeds or choice.advice)):
        return []
    where = "Freehold's engine on the CPU" if choice.engine == OURS else choice.engine
    lines = [f"engine: {where}: {choice.reason}"]
    return [*lines, f"note: {choice.advice}"] if choice.advice else lines


def deployments_of(
    settings: Settings, store: Store, names: Sequence[str], wish: EngineWish
) -> tuple[list[str], StartedDeployments | None]:
    """Share the models that a server is started for: those of our engine, and those that another one computes."""
    from freehold.cli.deploying.serving import StartedDeployments
    from freehold.outgrow.options import DeployOptions
    from freehold.outgrow.planning.options import planned

    ours, plans = [], []
    for name in names:
        ref = store.resolve(name)
        choice = engine_for(settings, ref, wish)
        for line in told(choice, wish.engine):
            tell(f"{name}: {line}")
        if choice.engine == OURS:
            ours.append(name)
            continue
        path, context = str(ref.path), wish.context or 0
        options = DeployOptions(path, name, choice.engine, context=context, fallback=name)
        plans.append((planned(settings, options, start=True), options))
    return ours, StartedDeployments(plans, keep=False) if plans else None
