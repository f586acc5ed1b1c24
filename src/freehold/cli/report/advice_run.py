"""`freehold advise --run`: the first pick that can be had answers the task's sample, beside the speed predicted for it.

Knows models and the store; the prediction is the advisor's. Path: cli/advise -> run_first -> local.open_model
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from freehold.cli.report.advice import name
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice, Placement
    from freehold.advisor.interval import Interval
    from freehold.catalog import Model


def run_first(settings: Settings, advice: Advice, *, quiet: bool) -> None:
    """Run the first available pick on the task's sample, and compare its speed with the prediction."""
    for judged in advice.picks:
        place = judged.placement
        if place is None or place.engine != "freehold" or advice.request.task.encoder:
            raise UsageError(
                "--run needs a model that answers on this machine", "run the command above instead"
            )
        try:
            tried = _try(settings, judged.model, place, advice.request.task.sample, quiet=quiet)
        except FreeholdError as e:
            click.echo(f"{name(judged.model)} cannot be run: {e.message}; trying the next one", err=True)
            continue
        click.echo(
            f"decode {tried:.1f} tokens a second; predicted {_compared(tried, place.decode)}", err=True
        )
        if tried not in place.decode:
            then = _foreseen_now(settings, judged.model, place)
            click.echo(f"predicted at the present load: {_compared(tried, then)}", err=True)
        return
    raise UsageError("none of these models can be fetched", "freehold list shows the models in the store")


def _compared(tried: float, foreseen: Interval) -> str:
    return f"{foreseen}: {'inside' if tried in foreseen else 'outside'}"


def _try(settings: Settings, model: Model, place: Placement, sample: str, *, quiet: bool) -> float:
    """Answer the sample without speculation, as the prediction assumes; return tokens a second."""
    from freehold.advisor.learning import learn
    from freehold.cli.shared import held_or_fetched
    from freehold.local import open_shown
    from freehold.machine import Crowd
    from freehold.store import Store

    store = Store(settings)
    ref = held_or_fetched(store, model.name or model.id)
    speed, usages, crowd = 0.0, [], Crowd()
    with open_shown(ref, context=place.context, speculate=False, packs=store.packs) as llm:
        for chunk in llm.stream(sample, max_tokens=128, temperature=0):
            if chunk.usage:
                speed = chunk.usage.decode_tok_s
                usages.append(chunk.usage)
            if not quiet:
                click.echo(chunk.text, nl=False)
    if not quiet:
        click.echo("")
    learn(settings.home, ref.path, usages, crowd.share())
    return speed


def _foreseen_now(settings: Settings, model: Model, place: Placement) -> Interval:
    """Predict the speed again from rates measured now, in case the machine is shared or its clock has changed."""
    from freehold.advisor.fit import Fit, fit
    from freehold.advisor.machine import rates_now
    from freehold.choosing import here as this_machine
    from freehold.choosing import weighed

    here = this_machine(settings)
    assert here.machine is not None  # it is this machine
    then = replace(here, machine=replace(here.machine, rates=rates_now()))
    result = fit(weighed(settings, model.name or model.id), then, place.context)
    return result.decode if isinstance(result, Fit) else place.decode
