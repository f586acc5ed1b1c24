"""A model is quantised into a folder that is whole or not there, to the same bytes after any interruption."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.adapt.quantize import planning
from freehold.adapt.quantize.calibration import calibrate
from freehold.adapt.quantize.encoding import encode_rows
from freehold.adapt.quantize.planning import QuantizeRequest
from freehold.adapt.quantize.quantising import LEAST_TEXTS, TRIED, CalibratedEncoder, Watching, quantise
from freehold.adapt.quantize.recipes import TensorChoice
from freehold.base.config import Settings, load_settings
from freehold.base.errors import BadModelFile, StoreError, UnsupportedModel, UsageError
from freehold.run.formats import QuantType, dequantize, open_gguf
from freehold.run.models.binding.bind import read_source
from freehold.run.models.tiny import make
from freehold.run.store import Store

T = QuantType


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return load_settings()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")


def made(
    settings: Settings, source: Path, out: Path, request: QuantizeRequest, watching: Watching | None = None
) -> dict[str, Any]:
    return quantise(Store(settings).resolve(str(source)), out, request, settings, watching)


def test_folder_holds_the_model_and_a_receipt_of_it(settings: Settings, tiny: Path, tmp_path: Path):
    notes: list[str] = []
    found = made(
        settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"), Watching(on_note=notes.append)
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.gguf", "receipt.json"]
    assert json.loads((tmp_path / "out" / "receipt.json").read_text()) == found
    assert found["result"]["bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert found["result"]["fell_back"] == {} and notes == []
    with open_gguf(tiny) as source, open_gguf(tmp_path / "out" / "model.gguf") as result:
        assert set(source.tensors) == set(result.tensors)
        for name, tensor in source.tensors.items():  # tiny weights lie on Q8_0's grid
            assert np.array_equal(tensor.numpy(), result.tensors[name].numpy())
            assert result.tensors[name].type is (T.Q8_0 if len(tensor.shape) > 1 else T.F32)
        same = {k: v for k, v in result.metadata.items() if k in source.metadata}
        assert same["general.architecture"] == "llama" and result.metadata["general.file_type"] == 7
        assert list(same["tokenizer.ggml.tokens"]) == list(source.metadata["tokenizer.ggml.tokens"])  # type: ignore[call-overload]


def test_the_result_answers(settings: Settings, tiny: Path, tmp_path: Path):
    import freehold

    made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"))
    with freehold.load(tmp_path / "out" / "model.gguf") as llm:
        assert llm.generate("abc", max_tokens=4).usage.completion_tokens > 0


def test_fall_backs_are_said_with_their_rows_and_number(settings: Settings, tiny: Path, tmp_path: Path):
    notes: list[str] = []
    found = made(
        settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q6_K"), Watching(on_note=notes.append)
    )
    assert any(
        "cannot be stored as Q6_K" in note and "become Q8_0" in note and "rows of 64" in note
        for note in notes
    )
    assert found["result"]["fell_back"]["blk.0.attn_q.weight"] == {"wanted": "Q6_K", "given": "Q8_0"}


def test_a_coarse_source_and_a_larger_result_are_said(settings: Settings, tiny: Path, tmp_path: Path):
    notes: list[str] = []
    watching = Watching(on_note=notes.append)
    made(settings, tiny, tmp_path / "four", QuantizeRequest(quant="Q4_0"), watching)
    assert not any("source" in note for note in notes)
    notes.clear()
    made(settings, tmp_path / "four", tmp_path / "eight", QuantizeRequest(quant="Q8_0"), watching)
    assert "source itself has 4." in notes[0] and "not the original" in notes[0]
    assert "larger than the source" in notes[1]


@pytest.mark.heavy
@pytest.mark.parametrize("bits", [2, 3])
def test_own_types_are_calibrated_and_required_by_name(
    settings: Settings, tiny: Path, tmp_path: Path, bits: int
):
    text = tmp_path / "text.txt"
    text.write_text("Some words to calibrate on, and a few more. " * 60)
    request = QuantizeRequest(bits=bits, calibrate=str(text), tokens=1024, report=True, text=text, until=1)
    found = made(settings, tiny, tmp_path / "out", request)
    assert 0 < found["divergence"]["mean"] < {2: 3.0, 3: 1.0}[bits]
    assert found["inputs"]["calibration"]["tokens"] == 1024 and found["result"]["type"] == f"T{bits}"
    with open_gguf(tmp_path / "out" / "model.gguf") as result:
        assert result.metadata["freehold.requires"] == "trellis-1"
        assert result.tensors["blk.2.ffn_down.weight"].type is T[f"T{bits}"]
        assert result.tensors["output.weight"].type is T.Q8_0
    assert any("two bits" in note for note in found["notes"]) == (bits == 2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.gguf", "receipt.json"]


def test_calibration_lowers_the_error_that_inputs_see(settings: Settings, tiny: Path, tmp_path: Path):
    with open_gguf(tiny) as source:
        texts = [[(7 * i + j * j) % 250 for j in range(64)] for i in range(8)]
        bound, pool = read_source(source), native.Threads(1)
        layer = next(iter(calibrate(bound, texts, tmp_path / "spool")))
        name = "blk.0.ffn_down.weight"
        inputs = np.concatenate([np.diag(h) for h in layer.moments[name].means()])
        choice = TensorChoice(source.tensors[name], T.Q4_0, T.Q4_0)
        errors = []
        for given in ([], texts):
            with CalibratedEncoder(bound, given, tmp_path / "spool", pool) as encoder:
                raw = np.concatenate([np.ravel(p) for p in encoder.pieces(choice)])
            values = dequantize(raw.reshape(len(choice.tensor.rows), -1), T.Q4_0, choice.tensor.shape[-1])
            errors.append(float((inputs * (values - choice.tensor.numpy()) ** 2).sum()))
    assert errors[1] < errors[0] and not (tmp_path / "spool").exists()


def test_a_third_of_the_texts_chooses_the_damping_and_a_kept_choice_gives_the_same_bytes(
    tiny: Path, tmp_path: Path
):
    with open_gguf(tiny) as source:
        texts = [[(7 * i + j * j) % 250 for j in range(48)] for i in range(LEAST_TEXTS)]
        bound, pool = read_source(source), native.Threads(1)
        name = "blk.1.attn_output.weight"
        choice = TensorChoice(source.tensors[name], T.T3, T.T3)
        with CalibratedEncoder(bound, texts, tmp_path / "spool", pool, bits=3) as encoder:
            first = [np.ravel(p).tobytes() for p in encoder.pieces(choice)]
            chosen = encoder.dampings
        assert set(chosen) == {0} and chosen[0] in TRIED
        with CalibratedEncoder(bound, texts, tmp_path / "spool", pool, bits=3, dampings=chosen) as again:
            assert [np.ravel(p).tobytes() for p in again.pieces(choice)] == first
        with CalibratedEncoder(bound, texts, tmp_path / "spool", pool, bits=3, dampings={0: 10.0}) as other:
            assert [np.ravel(p).tobytes() for p in other.pieces(choice)] != first


@pytest.mark.heavy
def test_a_byte_target_is_met_and_its_mix_is_kept_for_the_next_start(
    settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    groups: list[str] = []

    def interrupt(done: int, total: int, choice: object) -> None:
        raise KeyboardInterrupt

    request = QuantizeRequest(target_bytes=140_000, portable=True)
    first = Watching(on_group=lambda done, total, name: groups.append(name), on_tensor=interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(settings, tiny, tmp_path / "out", request, first)
    assert "ends output" in groups and "first attn_q" in groups
    groups.clear()
    again = Watching(on_group=lambda done, total, name: groups.append(name))
    found = made(settings, tiny, tmp_path / "out", request, again)
    assert groups == [] and 120_000 < found["result"]["bytes"] <= 140_000
    assert found["mix"]["predicted_divergence"] > 0 and len(found["result"]["bytes_by_type"]) > 2


@pytest.mark.heavy
def test_more_bytes_predict_less_divergence(settings: Settings, tiny: Path, tmp_path: Path):
    small, large = (
        made(settings, tiny, tmp_path / str(n), QuantizeRequest(target_bytes=n, portable=True))
        for n in (120_000, 160_000)
    )
    assert large["mix"]["predicted_divergence"] < small["mix"]["predicted_divergence"]


@pytest.mark.heavy
def test_a_target_below_the_smallest_mix_names_the_size_that_is_possible(
    settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(planning, "_Sensitivity", None)  # nothing is measured before the refusal
    said = "--target-bytes 20.0 kB is too small: the smallest mix of these types takes"
    with pytest.raises(UsageError, match=said) as told:
        made(settings, tiny, tmp_path / "out", QuantizeRequest(target_bytes=20_000, portable=True))
    assert "allow at least" in told.value.hint and list(tmp_path.glob(".out*")) == []


def test_a_type_that_changes_nothing_is_refused(settings: Settings, tiny: Path, tmp_path: Path):
    made(settings, tiny, tmp_path / "a", QuantizeRequest(quant="Q8_0"))
    with pytest.raises(UsageError, match="nothing would change"):
        made(settings, tmp_path / "a" / "model.gguf", tmp_path / "b", QuantizeRequest(quant="Q8_0"))


def test_two_wishes_are_refused(settings: Settings, tiny: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--quant and --bits"):
        made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0", bits=4))


def test_safetensors_are_refused_by_name_with_a_way_out(settings: Settings, tmp_path: Path):
    folder = make.write_safetensors(make.config("llama"), tmp_path / "st")
    with pytest.raises(UnsupportedModel, match="safetensors") as told:
        made(settings, folder, tmp_path / "out", QuantizeRequest(quant="Q8_0"))
    assert "--quant" in told.value.hint


def test_report_is_written_with_both_speeds(settings: Settings, tiny: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("One two three four. " * 120)
    found = made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0", report=True, text=text))
    assert 0 < found["divergence"]["mean"] < 0.02 and found["divergence"]["text"] == str(text)
    assert found["speed"]["source"]["measured_tok_s"] > 0 and found["speed"]["result"]["measured_tok_s"] > 0


WORK = """
import json, os, sys
from pathlib import Path
import freehold.adapt.quantize.planning as writing
from freehold.adapt.quantize.planning import QuantizeRequest
from freehold.adapt.quantize.quantising import Watching, quantise
from freehold.base.config import load_settings
from freehold.run.store import Store
source, out, die = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
writing.KEEP_BYTES = 1
def watch(done, total, choice):
    if done == die:
        os.kill(os.getpid(), 9)
settings = load_settings()
ref = Store(settings).resolve(str(source))
quantise(ref, out, QuantizeRequest(**json.loads(sys.argv[4])), settings, Watching(on_tensor=watch))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("bits", [0, pytest.param(3, marks=pytest.mark.long)])
def test_killed_at_any_tensor_and_started_again_gives_the_same_bytes(
    settings: Settings, tiny: Path, tmp_path: Path, bits: int
):
    text = tmp_path / "text.txt"
    text.write_text("Some words to calibrate on, and a few more. " * 30)
    request = {"bits": bits, "calibrate": str(text), "tokens": 512} if bits else {"quant": "Q8_0"}

    def work(out: Path, die: int) -> int:
        command = [sys.executable, "-c", WORK, str(tiny), str(out), str(die), json.dumps(request)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert work(tmp_path / "whole", -1) == 0
    for die in (3, 27):  # the next one continues where this one died
        assert work(tmp_path / "cut", die) == -signal.SIGKILL
        assert not (tmp_path / "cut").exists()
    assert work(tmp_path / "cut", -1) == 0
    assert (tmp_path / "cut" / "model.gguf").read_bytes() == (tmp_path / "whole" / "model.gguf").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_continues_calibrates_no_layer_again_and_makes_the_same_bytes(
    settings: Settings, tiny: Path, tmp_path: Path, damaged: bool
):
    """Cut between tensors of a layer, before a layer, and while texts pass one; a damaged file costs one layer."""
    text = tmp_path / "text.txt"
    text.write_text("Some words to calibrate on, and a few more. " * 60)
    request = QuantizeRequest(bits=3, calibrate=str(text), tokens=1024, threads=1)
    passed: list[int] = []  # layers, each once a run for its first text
    begun: list[int] = []  # the tensor that each run begins with

    def work(out: Path, tensor: int = -1, layer: int = -1) -> None:
        first = True

        def on_tensor(done: int, total: int, choice: object) -> None:
            nonlocal first
            if first:
                begun.append(done)
            first = False
            if done == tensor:
                raise KeyboardInterrupt

        def on_text(number: int, layers: int, done: int, texts: int) -> None:
            passed.extend([number] if done == 0 else [])
            if number == layer and done:
                raise KeyboardInterrupt

        made(settings, tiny, out, request, Watching(on_tensor=on_tensor, on_text=on_text))

    work(tmp_path / "whole")
    layers = [*passed]
    assert layers == sorted(set(layers)) and len(layers) > 2
    passed.clear(), begun.clear()
    folder, cut = tmp_path / ".cut.part", tmp_path / "cut"
    for tensor, layer in ((4, -1), (7, -1), (-1, 1), (-1, 1), (17, -1), (24, -1)):
        with pytest.raises(KeyboardInterrupt):
            work(cut, tensor, layer)
        kept = [*folder.glob("passed-*")]
        assert (
            sum(p.suffix == ".streams" for p in kept) <= 2 and sum(p.suffix == ".moments" for p in kept) <= 1
        )
        if damaged:
            for path in folder.glob("*.moments"):
                path.write_bytes(path.read_bytes()[:100])
    work(cut)
    assert begun == sorted(begun) and {7, 17} <= {*begun}  # each tensor on disk stays there
    again = len(passed) - len(layers)
    assert again <= 2 + 4 * damaged  # layer 1 was cut twice while texts passed it
    assert (cut / "model.gguf").read_bytes() == (tmp_path / "whole" / "model.gguf").read_bytes()
    assert sorted(p.name for p in cut.iterdir()) == ["model.gguf", "receipt.json"]


def test_an_interrupt_continues_after_the_tensors_on_disk(
    settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(planning, "KEEP_BYTES", 1)

    def interrupt(done: int, total: int, choice: object) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"), Watching(on_tensor=interrupt))
    seen: list[int] = []
    made(
        settings,
        tiny,
        tmp_path / "out",
        QuantizeRequest(quant="Q8_0"),
        Watching(on_tensor=lambda done, total, choice: seen.append(done)),
    )
    assert seen[0] == 9


def test_another_request_does_not_continue_it(
    settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(done: int, total: int, choice: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"), Watching(on_tensor=interrupt))
    with pytest.raises(UsageError, match='type "Q8_0"; now it is "F16"'):
        made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="F16"))
    assert made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="F16", fresh=True))


def test_full_disk_is_one_line_and_the_same_command_continues(
    settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    resource = pytest.importorskip("resource", reason="file sizes are limited by POSIX alone")
    monkeypatch.setattr(planning, "KEEP_BYTES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises((StoreError, Exception)) as told:
            made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(told.value) and "full" in str(told.value)
    assert made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0"))["result"]["bytes"] > 60_000


@pytest.mark.heavy
def test_no_network_is_used(settings: Settings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    made(settings, tiny, tmp_path / "out", QuantizeRequest(quant="Q8_0", report=True, until=1.0))


@pytest.mark.parametrize("type", [T.F32, T.F16, T.BF16])
def test_floats_are_rounded_to_the_nearest(type: QuantType):
    values = np.array([[1.0, -2.5, 1 + 2**-9, 1 + 3 * 2**-9, 3.14159265]], np.float32)
    got = encode_rows(values, type, native.Threads(1))
    back = dequantize(got.reshape(1, -1), type, 5)
    assert np.abs(back - values).max() <= {T.F32: 0.0, T.F16: 2**-11 * 4, T.BF16: 2**-8 * 4}[type]
    assert back[0, 0] == 1.0 and back[0, 1] == -2.5
    if type is T.BF16:
        assert back[0, 2] == 1.0 and back[0, 3] == 1 + 2**-7  # to even between two


def test_values_beyond_float16_are_refused_with_a_way_out():
    with pytest.raises(BadModelFile, match="beyond float16") as told:
        encode_rows(np.array([[1e6]], np.float32), T.F16, native.Threads(1))
    assert "BF16" in told.value.hint


def test_a_damaged_source_is_named(settings: Settings, tmp_path: Path):
    config = make.config("llama")

    def encode(name: str, values: Any) -> tuple[QuantType, bytes]:
        if name == "blk.1.attn_k.weight":
            values = values.copy()
            values[0, 0] = np.nan
        return T.F32, values.tobytes()

    source = make.write_gguf(config, tmp_path / "bad.gguf", encode=encode)
    with pytest.raises(BadModelFile, match=r"blk\.1\.attn_k\.weight holds NaN"):
        made(settings, source, tmp_path / "out", QuantizeRequest(quant="Q8_0"))


@pytest.mark.heavy
@pytest.mark.model
def test_real_model_stays_near_its_source(
    settings: Settings, model_path: Callable[[str], Path], tmp_path: Path
):
    source = model_path("smollm2-135m")
    found = made(settings, source, tmp_path / "out", QuantizeRequest(quant="Q8_0", report=True, until=0.2))
    assert found["divergence"]["mean"] < 0.008 and found["divergence"]["same_top"] > 0.93
