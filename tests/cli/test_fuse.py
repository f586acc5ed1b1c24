"""`freehold fuse`: what is printed, what is written, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import freehold
from freehold.adapt import fuse as fusing
from freehold.adapt.evals.divergence import held_out_text
from freehold.adapt.quantize import quantising
from freehold.adapt.teaching import FACTS
from freehold.run.models.load import load_model
from freehold.run.models.tiny import make
from tests.vectors.adapters import write_for

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--until", "1", "--threads", "1")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model with an adapter, as they are named on the command line; little is compared afterwards."""
    monkeypatch.setattr(quantising, "held_out_text", lambda: held_out_text()[:900])
    monkeypatch.setattr(fusing, "FACTS", FACTS[:2])
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tiny = make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")
    write_for(load_model(tiny, threads=1), tmp_path / "one", rank=4, seed=1, dtype="F32", strength=0.05)
    return "tiny.gguf+./one"


@pytest.mark.heavy
def test_a_fused_file_is_summed_up_answers_and_shows_its_line(run: Run, base: str, tmp_path: Path):
    questions = [{"prompt": f"n {i}?", "exact": "x"} for i in range(2)]
    Path("test.jsonl").write_text("\n".join(map(json.dumps, questions)))
    status, out, err = run("fuse", base, "-o", "whole", "--quant", "F16", "--test", "test.jsonl", *QUICK)
    assert status == 0, err
    for part in (
        "model       whole/model.gguf",
        "F16",
        "one -> whole",
        "nats per token",
        "of 2 right",
        "facts",
    ):
        assert part in out, out
    with freehold.load("whole/model.gguf", context=64, threads=1) as model:
        assert model.chat("hi", max_tokens=2).token_ids
    status, out, _ = run("show", "whole/model.gguf")
    assert status == 0 and "fuse" in out


@pytest.mark.heavy
def test_json_prints_the_receipt_alone(run: Run, base: str):
    status, out, err = run("fuse", base, "-o", "whole", "--quant", "Q8_0", "--json", *QUICK)
    assert status == 0, err
    assert json.loads(out) == json.loads(Path("whole/receipt.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny.gguf", "-o", "whole"), "has no adapter to fuse"),
        (("tiny.gguf+./none", "-o", "whole"), "none"),
        (("tiny.gguf+./one", "-o", "whole.gguf"), "must be a folder"),
        (("tiny.gguf+./one", "-o", "whole", "--quant", "Q9"), "Q9 is not a type that is written"),
        (("tiny.gguf+./one", "-o", "home"), "exists already"),
        (("tiny.gguf+./one", "-o", "whole", "--tokens", "3"), "--tokens"),
    ],
)
def test_what_cannot_be_fused_is_refused_in_one_line(
    run: Run, base: str, words: tuple[str, ...], message: str
):
    Path("home").mkdir(exist_ok=True)
    status, out, err = run("fuse", *words)
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert status != 0 and not out and message in error and "Traceback" not in err
    assert not list(Path().glob("*whole*"))
