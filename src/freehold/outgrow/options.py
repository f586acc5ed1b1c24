"""What `freehold deploy`, `deploy capacity` and their Python functions may be asked, which are the verbs' options too.

Knows names, ranges and helps; imports no engine, no plan and nothing that simulates. What the options of a deployment
mean together is planning/options.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.base.options import check, option

if TYPE_CHECKING:
    from freehold.outgrow.capacity.engine import EngineModel
    from freehold.outgrow.capacity.trace import RequestTrace

WEEK_S = 7 * 86400.0
ENGINES = ("auto", "vllm", "sglang", "trtllm", "llamacpp", "ollama", "mlx", "freehold")


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What `freehold deploy` was asked for. 0 and "" are choices left to the plan."""

    model: str  # a folder, a GGUF, a name of the store or of the catalogue
    name: str = option("", "Name for requests; default: the model's.", metavar="NAME")
    engine: str = option(
        "auto",
        "Engine to start; auto: the available engine with the highest predicted speed. Default: auto.",
        choices=ENGINES,
    )
    on: str = option(
        "",
        "Plan for this hardware instead: 8xh100, rtx-4090; or run on Ray Serve: ray, ray:PYTHON, ray://HOST:PORT.",
        metavar="HARDWARE",
    )
    nodes: int = option(0, "Number of machines like --on HARDWARE.", least=1, most=64, metavar="N")
    replicas: int = option(0, "Engines behind the name.", least=1, most=1000, metavar="N")
    context: int = option(0, "Context of each request.", form="amount", metavar="TOKENS")
    streams: int = option(0, "Requests at a time, per replica.", least=1, metavar="N")
    quant: str = option(
        "", "Published copy of a catalogue model to use: FP8, INT4, NVFP4, Q4_K_M.", metavar="Q"
    )
    cache_type: str = option(
        "",
        "Type of cached keys and values: fp8 stores twice as many as 16 bits, at a small loss.",
        metavar="TYPE",
    )
    flags: tuple[str, ...] = option(
        (),
        "A flag of the engine's own, checked against its version; repeatable.",
        name="engine-flag",
        metavar="--NAME=VALUE",
    )
    python: str = option("", "Start the engine of this Python's environment.", metavar="PATH")
    env: str = option(
        "",
        "Environment of the engine, created by uv or pip if missing; NAME: one in the data folder.",
        metavar="DIR",
    )
    command: str = option("", "Start the engine with this command.", metavar="WORDS")
    attach: str = option(
        "",
        "Use an engine that is already running at URL or unix:PATH; MODEL is the engine's name for the model.",
        metavar="URL",
    )
    attach_key_env: str = option("", "Variable that has the attached engine's key.", metavar="NAME")
    attach_cleartext: bool = option(
        False, "Allow http:// to another machine, over a path that is private (a tunnel, a cable)."
    )
    fallback: str = option("", "An installed model that answers while no replica can.", metavar="MODEL")


OPTIONS = tuple(each.name for each in fields(DeployOptions) if each.name != "model")


@dataclass(frozen=True, slots=True)
class CapacityOptions:
    """A load, an engine and an objective. None, 0 and "" are choices left to the simulation."""

    model: str = ""  # of the catalogue, the store, or a folder: with `on`
    trace: RequestTrace | Path | str | None = option(
        None,
        "File of requests: CSV (timestamp, input, output) or Mooncake's JSON lines; may be gzipped.",
        form="path",
    )
    ledger: bool = option(False, "Use the requests in the ledger of this data folder's gateway.")
    ledger_file: Path | str | None = option(None, "Use the requests in this ledger.", form="path")
    since: float = option(WEEK_S, "With a ledger: how far back.", form="time")
    rate: float = option(
        0.0, "Use random requests: this many per second, arriving independently.", shown=False
    )
    prompt: int = option(1024, "With --rate: tokens of a prompt.", form="amount")
    max_tokens: int = option(256, "With --rate: tokens of an answer.", form="amount")
    vary: bool = option(False, "With --rate: exponential lengths around these means.")
    seconds: float | None = option(
        None, "Length of the trace: with --rate, default 10m; of a file, use only its beginning.", form="time"
    )
    faster: float = option(1.0, "Replay the requests at this multiple of their rate.")
    steps: EngineModel | Path | str | None = option(
        None, "Step times measured by freehold deploy bench -o.", form="path"
    )
    on: str = option("", "Hardware of one replica: h100, 4xh100; predicts its steps.", metavar="HARDWARE")
    engine: str = option(
        "",
        "With --on: vllm, sglang, trtllm, llamacpp or mlx. Default: the engine that deploy would use.",
        metavar="NAME",
    )
    quant: str = option("", "With --on: published copy of the model: FP8, INT4.", metavar="Q")
    replicas: int | str = option(
        "", "Try N, or each from A to B. With --autoscale: its range.", form="text", metavar="N|A..B"
    )
    objective: str = option(
        "",
        "Find the smallest number of replicas for this objective: ttft-p95=2s,tpot-p95=50ms,latency-p99=30s; "
        "repeatable.",
        form="list",
        metavar="AIMS",
    )
    routing: str = option("least-loaded", "round-robin, least-loaded, prefix, or all.", metavar="A,B")
    autoscale: str = option(
        "",
        "Try autoscaling by outstanding requests per replica, or by busy time.",
        metavar="queue=N|utilisation=X",
    )
    start_time: float = option(120.0, "With --autoscale: time until a new replica answers.", form="time")
    streams: int | None = option(
        None, "Parallel answers of one replica, if not as measured or predicted.", least=1
    )
    room: int | None = option(None, "Tokens of KV cache of one replica, likewise.", form="amount")
    chunk: int | None = option(None, "Maximum tokens of a step, likewise.", least=1)
    rent: float | None = option(
        None, "Cost of a replica in dollars an hour; with --on, the default is from the catalogue."
    )

    def __post_init__(self) -> None:
        check(self)
