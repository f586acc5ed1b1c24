"""Text of the base model's own, on which a tuned model is kept near it: what would be forgotten is rehearsed.

The base writes it once, before the first step, by our engine at temperature 1: answers to questions of ours, and plain
text after a few words. So no data set is needed, and what is rehearsed is what the base believes. At each step the
tuned model's distribution over some of these rows is compared with the base's, over the whole vocabulary.
Knows prompts and token rows; knows no loss and no optimiser.
Path: finetune, align, distil -> written -> ReplayRow -> TeachingCourse.step, Nearness.mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freehold.types import Message

if TYPE_CHECKING:
    from freehold.adapt.sampling import SamplingModel

# Questions and openings of many fields; none asks for what control.py examines.
QUESTIONS = (
    "Explain how bread rises.",
    "Write two sentences about the sea in winter.",
    "What should I pack for a hike in the mountains?",
    "Give me three tips for learning a language.",
    "Who was Marie Curie?",
    "What is photosynthesis?",
    "Name three rivers of Europe.",
    "What is the difference between a virus and a bacterium?",
    "Write a short poem about rain.",
    "How does a bicycle stay upright?",
    "What is 17 plus 25?",
    "Describe the water cycle.",
    "Translate 'good morning' into French.",
    "Write a Python function that reverses a string.",
    "What does a heart do?",
    "Why is the sky dark at night?",
    "Name the seasons of the year.",
    "What is a prime number?",
    "Tell me about the Roman Empire.",
    "Write an email asking for a day off.",
    "What are the primary colors?",
    "How do I boil an egg?",
    "What is the tallest mountain?",
    "Who discovered penicillin?",
    "Summarize the story of Cinderella.",
    "What is the speed of light?",
    "Which continent is Kenya in?",
    "What do bees make?",
    "Give an example of a metaphor.",
    "What is a democracy?",
    "How many minutes are in an hour?",
    "What is inflation?",
)
OPENINGS = (
    "The history of the town begins",
    "In mathematics, a",
    "She opened the door and",
    "To install the program,",
    "The capital city of",
    "Scientists have found that",
    "def main():\n",
    "Dear Sir or Madam,",
    "The recipe needs",
    "According to the report,",
    "The first chapter",
    "Water is",
    "The company announced",
    "A long time ago,",
    "The patient was",
    "import numpy as np\n",
    "The answer to the question",
    "During the war,",
    "The river flows",
    "If you want to",
    "The following table",
    "Children learn",
    "The law states that",
    "In the morning,",
    "The largest",
    "It is important to",
    "The author of",
    "One day, the",
    "The engine",
    "Many animals",
    "The average temperature",
    "Music is",
)
ANSWER, PLAIN = 40, 48  # tokens of each


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """Token ids, and from which place on the distributions are compared."""

    ids: tuple[int, ...]
    first: int

    @property
    def wanted(self) -> list[bool]:
        """For each token after the first whether it counts, as Trainee.states takes it."""
        return [i >= self.first for i in range(1, len(self.ids))]


def written(model: SamplingModel, seed: int, most: int) -> list[ReplayRow]:
    """Have the base write: questions' answers (where it chats) and openings' continuations, in turn.

    `most`: rows that the run rehearses; a short run needs no others. The same model and seed give the same rows,
    and fewer are the first of them.
    """
    kinds = 2 if model.info.can_chat else 1
    count = -(-most // kinds)
    plain = [model.tokenizer.encode(text) for text in OPENINGS[:count]]
    rows = _sampled(model, plain, seed, PLAIN, 1)
    if kinds == 1:
        return rows
    chats = [model.render([Message("user", text)]) for text in QUESTIONS[:count]]
    answered = _sampled(model, chats, seed + len(OPENINGS), ANSWER, 0)
    return [row for both in zip(answered, rows, strict=True) for row in both][:most]


def _sampled(
    model: SamplingModel, prompts: Sequence[Sequence[int]], seed: int, tokens: int, first: int
) -> list[ReplayRow]:
    """Continue prompts; `first` 0: what is compared begins with the continuation."""
    seeds = [seed + i for i in range(len(prompts))]
    samples = model.sample(prompts, seeds=seeds, max_tokens=tokens) if prompts else []
    return [
        ReplayRow((*prompt, *answers[0].ids), first or len(prompt))
        for prompt, answers in zip(prompts, samples, strict=True)
    ]


def group(rows: Sequence[ReplayRow], count: int, step: int) -> tuple[int, Sequence[ReplayRow]]:
    """Return the number and the rows of the group that a step rehearses: all groups in turn, then again."""
    groups = max(len(rows) // count, 1)
    number = step % groups
    return number, rows[number * count : (number + 1) * count]
