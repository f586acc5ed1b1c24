"""Choose between answers by their likelihood: `score` gives the log-probability of each token."""
# model

import freehold

QUESTION = "The capital of France is"
CHOICES = [" Paris", " London", " cheese"]

with freehold.load("smollm2:135m", context=256, pull=True) as llm:
    prompt = llm.tokenize(QUESTION)
    scores = {c: llm.score(prompt + llm.tokenize(c))[len(prompt) - 1 :].mean() for c in CHOICES}

best = max(scores, key=lambda choice: scores[choice])
print(f"{QUESTION}{best}")
assert best == " Paris"
