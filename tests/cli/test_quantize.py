"""`freehold quantize`: what is printed, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import freehold
from freehold.cli.options import FileSize
from freehold.run.models.tiny import make

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")


def test_result_is_summed_up_on_stdout_and_fall_backs_on_stderr(run: Run, tiny: Path, tmp_path: Path):
    out = tmp_path / "out"
    status, said, err = run("quantize", str(tiny), "-o", str(out), "--quant", "Q6_K")
    assert status == 0, err
    assert f"file     {out}/model.gguf" in said and "Q8_0" in said and "licence  not known" in said
    assert "cannot be stored as Q6_K and become Q8_0" in err


def test_json_is_the_receipt(run: Run, tiny: Path, tmp_path: Path):
    status, said, _ = run("quantize", str(tiny), "-o", str(tmp_path / "out"), "--quant", "Q8_0", "--json")
    assert status == 0
    assert json.loads(said) == json.loads((tmp_path / "out" / "receipt.json").read_text())


def test_report_prints_divergence_and_speeds(run: Run, tiny: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("One two three four. " * 60)
    given = ("--quant", "Q8_0", "--report", "--text", str(text))
    status, said, err = run("quantize", str(tiny), "-o", str(tmp_path / "out"), *given)
    assert status == 0, err
    for part in (
        "divergence",
        "nats per token",
        "p99.9",
        "same most probable token",
        "perplexity",
        "tok/s measured",
    ):
        assert part in said


def test_result_runs_shows_and_is_referenced_by_its_folder(run: Run, tiny: Path, tmp_path: Path):
    out = tmp_path / "small"
    assert run("quantize", str(tiny), "-o", str(out), "--quant", "Q8_0")[0] == 0
    for named in (out, out / "model.gguf"):
        status, said, _ = run("show", str(named))
        assert status == 0 and "Q8_0" in said
    with freehold.load(out) as llm:
        assert llm.name == "small" and llm.generate("abc", max_tokens=2).usage.completion_tokens
    assert run("pull", str(out))[0] == 0
    assert any(line.startswith("small ") for line in run("list")[1].splitlines())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--quant", "Q9"], "Q9 is not a type that is written"),
        (["--quant", "Q8_0", "--text", "pyproject.toml"], "--text is for a report"),
        (["--quant", "Q8_0", "--until", "0"], "--until is for a report"),
        (["--quant", "Q8_0", "--report", "--until", "nan"], "'nan' is not a finite number"),
        (["--quant", "Q8_0", "--tokens", "1024"], "Q8_0 is written without calibration"),
        (["--bits", "7"], "7 is outside the range"),
        (["--target-bytes", "0"], "'0' is not a size"),
    ],
)
def test_wrong_options_are_refused(run: Run, tiny: Path, tmp_path: Path, given: list[str], says: str):
    status, _, err = run("quantize", str(tiny), "-o", str(tmp_path / "out"), *given)
    assert status == 2 and says in err and not (tmp_path / "out").exists()


def test_a_file_name_as_folder_is_refused_with_the_right_one(run: Run, tiny: Path, tmp_path: Path):
    status, _, err = run("quantize", str(tiny), "-o", str(tmp_path / "small.gguf"))
    assert status == 2 and "small/model.gguf" in err


def test_interrupt_says_that_the_same_command_continues(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.adapt.quantize import quantising

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantising, "write_model", interrupt)
    status, _, err = run("quantize", str(tiny), "-o", str(tmp_path / "out"), "--quant", "Q8_0")
    assert status == 130 and "stopped; the same command continues" in err


def test_interrupt_before_anything_was_kept_says_that_the_command_begins_anew(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.adapt.quantize import quantising

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantising, "planned", interrupt)
    status, _, err = run("quantize", str(tiny), "-o", str(tmp_path / "out"), "--quant", "Q8_0")
    assert status == 130 and "stopped; nothing was saved yet" in err
    assert not (tmp_path / ".out.part").exists()


def test_interrupt_right_after_the_last_rename_says_that_the_result_is_whole(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.adapt.run import RunFolder

    tidy, calls = RunFolder._tidy, []

    def interrupted(folder: RunFolder) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        tidy(folder)

    monkeypatch.setattr(RunFolder, "_tidy", interrupted)
    out = tmp_path / "out"
    status, _, err = run("quantize", str(tiny), "-o", str(out), "--quant", "Q8_0")
    assert status == 130 and f"stopped; {out} is whole" in err
    assert sorted(p.name for p in out.iterdir()) == ["model.gguf", "receipt.json"]


def test_seconds_of_calibration_are_shown_apart(run: Run, tiny: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 80)
    words = ("--bits", "3", "--calibrate", str(text), "--tokens", "512", "--json")
    status, said, err = run("quantize", str(tiny), "-o", str(tmp_path / "out"), *words)
    assert err.startswith("reading tiny\n")  # at once, whatever takes long afterwards
    parts = json.loads(said)["cpu_seconds_by_part"]
    assert status == 0 and set(parts) <= {"mix", "calibration", "encoding"}
    assert parts["calibration"] > 0 and parts["encoding"] > 0


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("1.2GB", 1_200_000_000),
        ("400mb", 400_000_000),
        ("900MiB", 900 << 20),
        ("1234", 1234),
        ("3 G", 3 * 10**9),
    ],
)
def test_sizes(text: str, bytes: int):
    assert FileSize().convert(text, None, None) == bytes
