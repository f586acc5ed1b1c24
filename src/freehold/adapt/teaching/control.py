"""What a model knew before and should know after: 24 facts of ours, and the loss on a text that is never trained on.

A fact counts where the answer's text holds one of its words. Small models know some of them; the same ones count
before and after. Knows questions and answers; knows no data of the user's.
Path: finetune, align, distil -> known_facts, text_loss, still_known -> receipt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from freehold.evals.divergence import held_out_text
from freehold.serving import Job
from freehold.types import Message

if TYPE_CHECKING:
    from freehold.adapt.training.trainee import Trainee
    from freehold.local import LLM

# Tokens of the text a window, and how many: a standard error near 0.06 nat, paired far less.
WINDOW, WINDOWS = 192, 8
TOGETHER = 4  # windows in one pass, which unpacks the weights once; a slice of the head takes 50 MB for them
ANSWER = 24  # tokens of an answer


class Fact(NamedTuple):
    """A question, and what a right answer has in it."""

    question: str
    words: tuple[str, ...]


FACTS = (
    Fact("What is the capital of France?", ("Paris",)),
    Fact("What is the capital of Japan?", ("Tokyo",)),
    Fact("What is the capital of Italy?", ("Rome",)),
    Fact("What is the capital of Egypt?", ("Cairo",)),
    Fact("What is the capital of Spain?", ("Madrid",)),
    Fact("What is the capital of Germany?", ("Berlin",)),
    Fact("Which planet is closest to the Sun?", ("Mercury",)),
    Fact("Which planet is known as the Red Planet?", ("Mars",)),
    Fact("Which is the largest planet of the Solar System?", ("Jupiter",)),
    Fact("What gas do plants take in from the air?", ("carbon dioxide", "CO2")),
    Fact("What is the chemical formula of water?", ("H2O", "H₂O")),
    Fact("What is the chemical symbol for gold?", ("Au",)),
    Fact("At how many degrees Celsius does water boil?", ("100",)),
    Fact("How many days are in a week?", ("seven", "7")),
    Fact("How many months are in a year?", ("twelve", "12")),
    Fact("How many legs does a spider have?", ("eight", "8")),
    Fact("Who wrote Romeo and Juliet?", ("Shakespeare",)),
    Fact("Who painted the Mona Lisa?", ("Leonardo", "Vinci")),
    Fact("Who developed the theory of relativity?", ("Einstein",)),
    Fact("Which ocean is the largest?", ("Pacific",)),
    Fact("Which animal is known as the king of the jungle?", ("lion",)),
    Fact("What color is the sky on a clear day?", ("blue",)),
    Fact("What is the opposite of hot?", ("cold",)),
    Fact("What language is spoken in Brazil?", ("Portuguese",)),
)


def known_facts(model: LLM, adapter: str = "") -> list[bool]:
    """Ask all facts, greedily, and return which answers are right."""
    greedy = {"temperature": 0.0, "seed": 0}
    jobs = [
        Job(messages=(Message("user", fact.question),), max_tokens=ANSWER, sampling=greedy, adapter=adapter)
        for fact in FACTS
    ]
    right = [False] * len(FACTS)
    for i, answer in model.answer_many(jobs):
        text = getattr(answer, "text", "").casefold()
        right[i] = any(word.casefold() in text for word in FACTS[i].words)
    return right


def still_known(model: LLM, trainee: Trainee, adapter: str) -> dict[str, Any]:
    """Return a receipt's `control` and `text_loss`: facts and text without the adapter and with it."""
    was, now = known_facts(model), known_facts(model, adapter)
    losses = [text_loss(trainee, adapter=tuned) for tuned in (False, True)]
    return {
        "control": compared_facts(was, now),
        "text_loss": {"before": losses[0], "after": losses[1], "rise": losses[1] - losses[0]},
    }


def compared_facts(was: Sequence[bool], now: Sequence[bool]) -> dict[str, int]:
    """Return how many facts were known, how many still are, and how many were lost and gained."""
    both = list(zip(was, now, strict=True))
    return {
        "facts": len(both),
        "before": sum(was),
        "after": sum(now),
        "lost": sum(a and not b for a, b in both),
        "gained": sum(b and not a for a, b in both),
    }


def text_rows(trainee: Trainee) -> list[list[int]]:
    """Cut windows out of the whole held-out text, evenly apart."""
    tokenizer = trainee.tokenizer
    start, ids = tokenizer.encode("", special=False), tokenizer.encode(held_out_text(), bos=False)
    step = max((len(ids) - WINDOW) // (WINDOWS - 1), 1)
    return [[*start, *ids[i : i + WINDOW]] for i in range(0, len(ids) - WINDOW + 1, step)][:WINDOWS]


def text_loss(trainee: Trainee, *, adapter: bool) -> float:
    """Return the mean loss on the held-out text, in nats per token, as the trainer computes it."""
    import torch

    with torch.no_grad():
        rows = text_rows(trainee)
        log_probs = [
            each
            for first in range(0, len(rows), TOGETHER)
            for each in trainee.log_probs(rows[first : first + TOGETHER], adapter=adapter)
        ]
    return -float(torch.cat(log_probs).double().mean())
