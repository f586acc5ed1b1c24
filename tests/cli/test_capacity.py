"""`freehold deploy capacity` and `bench`: requests from each source, a table, JSON, and refusals with the way out."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import freehold
from freehold.base.config import load_settings
from freehold.base.errors import ServerUnreachable, UsageError
from freehold.cli.deploying import capacity
from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.route.router.ledger.store import Ledger
from tests.outgrow.capacity.test_measuring import engine
from tests.router.ledger.rows import row

TRACES = Path(__file__).parents[1] / "outgrow" / "capacity"
MODEL = EngineModel(
    StepTime((0, 1, 32), (0.005, 0.01, 0.03), depth=2e-7, prompt=2e-4, spread=0.1, basis="measured: by hand"),
    EngineLimits(streams=16, chunk=512),
    {"model": "tiny"},
)


@pytest.fixture
def invoke(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function from a command and its arguments to stdout."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))

    def invoke(command: click.Command, *args: object) -> str:
        command.main(args=[*map(str, args)], obj=load_settings(), standalone_mode=False)
        return capsys.readouterr().out

    return invoke


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "steps.json").write_text(json.dumps(MODEL.as_json()))
    return tmp_path / "steps.json"


def test_an_objective_gives_the_fewest_replicas_with_a_range_and_cost(invoke, steps):
    aims = "ttft-p95=1s,tpot-p95=60ms"
    out = invoke(
        capacity.command,
        "--trace",
        TRACES / "azure-conv-1000.csv",
        "--steps",
        steps,
        "--objective",
        aims,
        "--rent",
        2.5,
    )
    assert out.splitlines()[0].startswith("azure-conv-1000.csv: 1,000 requests in")
    assert "REPLICAS  ROUTING" in out and "replicas for ttft-p95=1.00 s" in out
    assert "given the uncertainty of the step times" in out and "USD an hour" in out


def test_json_has_the_trace_the_engine_the_runs_and_the_answer(invoke, steps):
    out = invoke(
        capacity.command, "--rate", 4, "--prompt", 200, "--max-tokens", 40, "--seconds", "60s", "--steps", steps,
        "--objective", "ttft-p95=1s", "--replicas", "1..2", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert found["schema"] == 1 and found["trace"]["requests"] > 100
    assert found["engine"]["time"]["prompt"] == 2e-4
    assert found["least"][0]["replicas"] >= 1
    one = found["runs"][-1]
    assert one["replicas"] == 2 and one["ttft"]["p95"]["low"] <= one["ttft"]["p95"]["high"]
    assert one["usd_an_hour"] is None and one["answered"] == found["trace"]["requests"]


def test_every_routing_policy_is_played_and_hits_are_shown(invoke, steps):
    out = invoke(
        capacity.command,
        "--trace",
        TRACES / "mooncake-200.jsonl",
        "--steps",
        steps,
        "--replicas",
        4,
        "--routing",
        "all",
    )
    rows = [line.split() for line in out.splitlines() if " p50 " not in line and "%" in line]
    assert [r[1] for r in rows[:3]] == ["round-robin", "least-loaded", "prefix"]


def test_autoscaling_is_tried_in_the_simulator(invoke, steps):
    out = invoke(
        capacity.command, "--rate", 6, "--vary", "--steps", steps, "--autoscale", "queue=8", "--replicas", "1..6",
        "--start-time", "20s",
    )  # fmt: skip
    assert "autoscaling 1..6 by queue=8" in out


def test_hardware_that_is_not_here_is_predicted_with_its_rent(invoke):
    out = invoke(capacity.command, "qwen3:8b", "--on", "h100", "--rate", 3, "--seconds", "60s")
    assert "predicted: vLLM" in out and out.splitlines()[3].split()[-1] not in ("-", "0")


def test_a_replica_that_leaves_devices_idle_says_so(invoke):
    asked = ("--engine", "vllm", "--rate", 3, "--seconds", "20s")
    out = invoke(capacity.command, "qwen3:32b", "--on", "5xh100", *asked)
    assert "a replica uses 1 of 5 devices and is billed for all: --on h100 fits it" in out
    assert "billed" not in invoke(capacity.command, "qwen3:32b", "--on", "2xh100", *asked)


def test_a_folder_of_weights_is_predicted_by_its_own_sizes(invoke, tmp_path, capsys):
    from freehold.cli.main import run

    assert run(["make-tiny", "qwen3", "--out", str(tmp_path / "tiny")]) == 0
    capsys.readouterr()
    folder = tmp_path / "tiny" / "qwen3"
    out = invoke(
        capacity.command, folder, "--on", "h100", "--engine", "vllm", "--rate", 3, "--seconds", "60s"
    )
    assert "qwen3" in out.splitlines()[1] and "predicted: vLLM" in out


def test_the_ledgers_answered_requests_are_a_trace(invoke, steps, tmp_path):
    async def book() -> None:
        ledger = Ledger.open(tmp_path / "ledger.sqlite")
        for n in range(30):
            await ledger.book(row(at=time.time() - 600 + n))
        await ledger.close()

    asyncio.run(book())
    out = invoke(capacity.command, "--ledger-file", tmp_path / "ledger.sqlite", "--steps", steps)
    assert "ledger ledger.sqlite: 30 requests in 29.0 s" in out


@pytest.mark.parametrize(
    "args, near",
    [
        ((), "which requests"),
        (("--rate", "1", "--ledger"), "one place"),
        (("--rate", "1"), "what a step takes"),
        (("--rate", "1", "--on", "h100"), "MODEL"),
        (("--rate", "1", "--steps", "{steps}", "--replicas", "x"), "--replicas"),
        (("--rate", "1", "--steps", "{steps}", "--quant", "fp8"), "its own model"),
        (("--rate", "1", "--steps", "{steps}", "--autoscale", "cpu=3"), "--autoscale"),
        (
            ("--rate", "1", "--steps", "{steps}", "--autoscale", "queue=3", "--objective", "ttft-p95=1s"),
            "two questions",
        ),
        (("--rate", "1", "--steps", "{steps}", "--routing", "random"), "routing"),
        (("--trace", "gone.csv", "--steps", "{steps}"), "gone.csv"),
        (("--rate", "1", "--steps", "{steps}", "--rent", "nan"), "not a price"),
        (("--rate", "1", "--steps", "{steps}", "--rent", "-4"), "not a price"),
        (("--rate", "0.0001", "--seconds", "10s", "--steps", "{steps}"), "no request comes"),
        (("--rate", "1", "--seconds", "0", "--steps", "{steps}"), "for 0 s cannot be simulated"),
    ],
)
def test_what_cannot_be_simulated_is_refused(invoke, steps, args, near):
    with pytest.raises(UsageError) as refused:
        invoke(capacity.command, *(a.format(steps=steps) for a in args))
    assert near in f"{refused.value.message} {refused.value.hint}" and refused.value.hint


@pytest.fixture
def url() -> Iterator[str]:
    """An engine in another thread."""
    begun, stop, found = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with engine() as at:
            found.append(at)
            begun.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    begun.wait(10)
    yield found[0]
    stop.set()
    thread.join()


def test_what_bench_measures_is_what_capacity_reads(invoke, url, tmp_path):
    out = invoke(
        capacity.bench, url, "--batches", "1,2", "--depths", "16", "--prompts", "8,64", "--max-tokens", 8,
        "--rounds", 1, "--room", 5000, "-o", tmp_path / "steps.json",
    )  # fmt: skip
    assert "tiny at" in out and "ANSWERS" in out and f"written to {tmp_path / 'steps.json'}" in out
    model = EngineModel.load(tmp_path / "steps.json")
    assert model.limits.room == 5000 and model.about["engine"] == "vllm"
    out = invoke(
        capacity.command,
        "--rate",
        2,
        "--prompt",
        50,
        "--max-tokens",
        10,
        "--seconds",
        30,
        "--steps",
        tmp_path / "steps.json",
    )
    assert "tiny, vllm" in out


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http://a..b/v1", "ftp://127.0.0.1/v1"]
)
def test_what_is_no_address_is_refused(invoke, address):
    with pytest.raises((UsageError, ServerUnreachable)):
        invoke(capacity.bench, address)


def test_a_key_is_not_sent_in_the_clear_to_another_machine(invoke, monkeypatch):
    monkeypatch.setenv("FREEHOLD_BENCH_KEY", "k" * 32)
    with pytest.raises(UsageError, match="not this machine, and http shows the key") as refused:
        invoke(capacity.bench, "http://10.0.0.1:8000/v1")
    assert "k" * 32 not in str(refused.value)
    with pytest.raises(ServerUnreachable):
        invoke(capacity.bench, "http://127.0.0.1:1/v1")


def test_a_model_that_is_not_offered_is_refused_with_those_that_are(invoke, url):
    with pytest.raises(UsageError) as refused:
        invoke(capacity.bench, url, "--model", "tinny")
    assert "tiny" in refused.value.hint


def test_objectives_add_up_and_engines_have_the_names_of_deploy(invoke):
    words = ("qwen3:8b", "--on", "l40s", "--rate", 1, "--seconds", "20s", "--engine", "trtllm", "--json")
    told = json.loads(
        invoke(capacity.command, *words, "--objective", "ttft-p95=2s", "--objective", "tpot-p95=50ms")
    )
    assert told["engine"]["about"]["engine"] == "tensorrt-llm"
    assert told["runs"][0]["ttft"]["p99"]["high"] is None  # too few requests to bound it; no Infinity in JSON
    assert "ttft-p95" in str(told["least"]) and "tpot-p95" in str(told["least"])


def test_what_does_not_fit_is_told_of_the_model_as_published(invoke):
    with pytest.raises(UsageError, match=r"FP8 does not fit .* on l40s: it needs 639\.\d GiB") as refused:
        invoke(capacity.command, "deepseek-v3", "--on", "l40s", "--rate", 1)
    assert "--on 8xh200 would hold it" in str(refused.value.hint)


def test_prefixes_of_a_trace_without_hashes_are_named(invoke, steps):
    out = invoke(capacity.command, "--rate", 1, "--seconds", "20s", "--steps", steps, "--routing", "all")
    assert "no hashes of blocks" in out


def test_a_file_of_steps_controls_no_terminal(invoke, steps, tmp_path):
    told = json.loads(Path(steps).read_text(encoding="utf-8"))
    told["about"]["model"] = "tiny\x1b]52;c;eA==\x07"
    (tmp_path / "evil.json").write_text(json.dumps(told), encoding="utf-8")
    out = invoke(capacity.command, "--rate", "1", "--steps", tmp_path / "evil.json")
    assert "\x1b" not in out and r"tiny\x1b]52" in out


@pytest.mark.heavy
def test_python_s_capacity_is_the_command_s(invoke, steps):
    words = "--rate 4 --prompt 200 --max-tokens 40 --seconds 60s --replicas 1..2 --rent 2.5 --objective ttft-p95=1s"
    out = invoke(capacity.command, *words.split(), "--steps", steps, "--json")
    sizes = {"rate": 4, "prompt": 200, "max_tokens": 40, "seconds": 60, "replicas": "1..2", "rent": 2.5}
    for given in (MODEL, steps, str(steps)):
        found = freehold.deploy_capacity(steps=given, objective="ttft-p95=1s", **sizes)
        assert json.dumps(found.as_json(), indent=1) == out.strip()
    again = freehold.deploy_capacity(steps=MODEL, trace=found.trace, replicas=2)
    assert (len(again.runs), again.runs[0].replicas, again.least) == (1, 2, ())
    with pytest.raises(UsageError, match="one place"):
        freehold.deploy_capacity(steps=MODEL, trace=found.trace, rate=2)


def test_python_s_bench_gives_capacity_its_steps(url, tmp_path):
    found = freehold.deploy_bench(
        url, model="tiny", batches=(1, 2), depths=(16,), prompts=(8, 64), clients=(1,), max_tokens=8, rounds=1,
        streams=4,
    )  # fmt: skip
    assert (found.limits.streams, found.about["model"]) == (4, "tiny")
    run = freehold.deploy_capacity(steps=found, rate=2, prompt=50, max_tokens=10, seconds=30).runs[0]
    assert run.percentile("ttft", 50) > 0
    with pytest.raises(ServerUnreachable, match="no server of this home"):
        freehold.deploy_bench("tiny", settings=load_settings({"FREEHOLD_HOME": str(tmp_path)}))
