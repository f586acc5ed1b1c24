"""A step of a student that learns from its own answers, judged by a teacher token by token.

The student samples with the adapter of this step, the teacher prefills what was sampled, and the loss is
KL(student || teacher) at each token over the whole vocabulary; the log-ratio of the drawn token alone would be a noisy
estimate of it. Source: arXiv 2306.13649 (GKD, lambda 1, beta 1). Knows prompts and models; knows no file.
Path: distil -> OnPolicyCourse.step -> TrainingLoop
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.adapt.distillation.given import given_states
from freehold.adapt.rows import AnswerRow
from freehold.adapt.sampling import SamplingModel
from freehold.adapt.training.head import divergence
from freehold.adapt.training.order import Order, parts
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee

# Tokens of answers whose teacher's logits are in memory at once: 151,936 floats a token are 0.6 MB, so 156 MB.
JUDGED_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as the student's and the teacher's server would render it. `line`: its seed follows from it."""

    line: int
    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass(slots=True)
class OnPolicyCourse:
    """Learns from its own answers. `student` and `teacher` are engines; the student's has the trainee's weights."""

    trainee: Trainee
    optimizer: Optimizer
    student: SamplingModel
    teacher: SamplingModel
    prompts: Sequence[PromptRow]
    order: Order
    max_tokens: int
    samples: int = 1

    def step(self, step: int) -> dict[str, Any]:
        """Sample, have the teacher read, learn; return the step's line."""
        import torch

        prompts = [self.prompts[i] for i in self.order.of(step)]
        adapter = self.student.packed(self.trainee.pairs(), self.trainee.scale)
        seeds = [_seed(self.order.seed, step, one.line) for one in prompts]
        samples = self.student.sample(
            [one.student for one in prompts],
            self.samples,
            seeds=seeds,
            max_tokens=self.max_tokens,
            adapter=adapter,
        )
        drawn = [(one, answer) for one, answers in zip(prompts, samples, strict=True) for answer in answers]
        tokens = sum(len(answer.ids) for _, answer in drawn)
        total, gaps = 0.0, []
        for part in parts(drawn, lambda each: len(each[1].ids), JUDGED_TOKENS):
            rows = [AnswerRow((*one.student, *answer.ids), len(one.student)) for one, answer in part]
            wanted = [row.wanted for row in rows]
            logits = [self.teacher.answer_logits(one.teacher, answer.ids) for one, answer in part]
            states = self.trainee.states([row.ids for row in rows], wanted=wanted)
            judged = given_states(logits, states.head.matrix.rows)
            kl = divergence(states.rows, states.head, judged.rows, judged.head, reverse=True)
            loss = kl.sum() / tokens
            loss.backward()
            total += float(loss.detach())
            with torch.no_grad():
                own = states.log_probs().detach().numpy()
            gaps.append(own - np.concatenate([answer.logprobs for _, answer in part]))
        gap = np.concatenate(gaps)
        rate = self.optimizer.rate
        return {
            "loss": total,
            "tokens": tokens,
            "cut": float(np.mean([answer.finish_reason == "length" for _, answer in drawn])),
            "mismatch": float(np.abs(gap).mean()),
            "gradient": self.optimizer.step(),
            "rate": rate,
        }


def _seed(seed: int, step: int, line: int) -> int:
    return int(np.random.SeedSequence((seed, step, line)).generate_state(1, np.uint64)[0] >> 1)
