"""Scores of teacher and student on prompts with judges: greedy answers, as served, by the same faults for both.

Knows questions and a model that samples; knows no training.
Path: distil -> marked, passed -> receipt
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freehold.adapt.distillation.answers import Taught, judged
from freehold.adapt.distillation.prompts import TeacherPrompt
from freehold.adapt.sampling import GREEDY, SamplingModel
from freehold.models.lora import Adapter


def marked(
    model: SamplingModel, questions: Sequence[TeacherPrompt], max_tokens: int, adapter: Adapter | None = None
) -> list[bool]:
    """Return for each judged prompt whether the greedy answer has no fault, as the teacher's are judged."""
    with_judge = judged_prompts(questions)
    prompts = [model.render(q.messages) for q in with_judge]
    samples = model.sample(
        prompts, seeds=[0] * len(with_judge), max_tokens=max_tokens, sampling=GREEDY, adapter=adapter
    )
    return [
        not judged(q, answer, model.tokenizer, 1, len(answer.ids)).why
        for q, [answer] in zip(with_judge, samples, strict=True)
    ]


def judged_prompts(questions: Sequence[TeacherPrompt]) -> list[TeacherPrompt]:
    """Return those that have a judge."""
    return [q for q in questions if q.check is not None]


def passed(unseen: Sequence[Taught]) -> float | None:
    """Return the share of judged answers without a fault; None where none is judged."""
    return float(np.mean([not taught.why for taught in unseen])) if unseen else None
