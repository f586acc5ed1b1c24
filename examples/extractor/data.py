"""Writes examples.jsonl and unseen.jsonl for recipe.toml: facts of a sentence as JSON, answered by a teacher.

    python data.py http://127.0.0.1:11435/v1 MODEL

The teacher is any model behind an OpenAI-compatible address, such as a `freehold serve --gateway`. Its terms must
let its answers train a model: `freehold license STUDENT --taught-by TEACHER`. Answers that are not JSON are left out.
"""

import json
import os
import random
import sys
import urllib.request
from pathlib import Path

FIRST = [
    "Maria",
    "John",
    "Aisha",
    "Chen",
    "Olga",
    "Peter",
    "Lena",
    "Tomas",
    "Grace",
    "Ivan",
    "Nadia",
    "Hugo",
    "Sara",
    "Omar",
    "Emil",
    "Ruth",
]
CITIES = [
    "Oslo",
    "Lima",
    "Kyoto",
    "Quito",
    "Porto",
    "Accra",
    "Turin",
    "Hanoi",
    "Cairo",
    "Perth",
    "Lyon",
    "Delhi",
]
ASK = "Write the name, the age and the city as JSON with the keys name, age and city, and nothing else.\n\n"
EXAMPLES, UNSEEN = 120, 60


def sentences(count):
    draw, seen = random.Random(7), {}
    while len(seen) < count:
        name, age, city = draw.choice(FIRST), draw.randint(18, 90), draw.choice(CITIES)
        seen[f"{name}, who is {age}, lives in {city}."] = {"name": name, "age": age, "city": city}
    return list(seen.items())


def answered(url, model, prompt):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 60,
        "temperature": 0,
    }
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {os.environ.get('API_KEY', 'none')}",
    }
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


url, model = sys.argv[1].rstrip("/"), sys.argv[2]
folder = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(__file__).parent
drawn = sentences(EXAMPLES + UNSEEN)
answers = [(ASK + text, answered(url, model, ASK + text)) for text, _ in drawn[:EXAMPLES]]
write(folder / "examples.jsonl", [{"prompt": q, "completion": a.strip()} for q, a in answers if is_json(a)])
write(
    folder / "unseen.jsonl",
    [{"prompt": ASK + text, "json": facts, "max_tokens": 60} for text, facts in drawn[EXAMPLES:]],
)
