"""Run what `deploy --emit k8s` writes for one node, as processes of this machine: the engine's container, our server's,
and their probes, word for word but for paths, ports and the engine's program.

`python -m benches.outgrow.pods --python /env/bin/python --model ./tiny [--timeout 300]`
It shows that a pod is ready after a token and not before, that the emitted gateway.toml leads to the engine, and that
the engine's port is closed without its key. No cluster, no container and no network policy takes part.
Path: pods.py -> kubernetes.documents -> probe.main, freehold serve
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import describe
from freehold.base.config import load_settings
from freehold.outgrow import drivers
from freehold.outgrow.contract import EngineFacts, PlanRequest
from freehold.outgrow.emit import EmitOptions
from freehold.outgrow.emit.containers import FOLDER, PORT
from freehold.outgrow.emit.kubernetes import documents
from freehold.outgrow.planning import facts
from freehold.outgrow.process.process import free_port

IMAGE = f"registry.example/none@sha256:{'0' * 64}"
MODULE = ("-m", "vllm.entrypoints.openai.api_server", "--model")


def main() -> None:
    """Print a line a step, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=300)
    args = parser.parse_args()
    settings = load_settings()
    request = PlanRequest(
        facts.deployed(settings, str(args.model.absolute())),
        facts.nodes_here(settings.home),
        EngineFacts(cpu=True),
        context=1024,
        streams=4,
    )
    plan = drivers.driver("vllm").plan(request)
    found = documents(plan, EmitOptions(image=IMAGE, server_image=IMAGE))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"bench": "pods", **describe(args.model), **_run(args, found, Path(folder))}))


class Pod:
    """A container's command and probes, as this machine runs them."""

    def __init__(self, template: dict[str, Any], places: dict[str, str], keys: dict[str, str], folder: Path):
        self._box, self._places = template["spec"]["containers"][0], places
        held = {
            v["name"]: v["value"] if "value" in v else keys.get(_key(v), "127.0.0.1")
            for v in self._box["env"]
        }
        marks = {"PROBE_FOLDER": str(folder)}
        self._env = {**os.environ, **{k: self._put(v) for k, v in held.items()}, **marks}
        folder.mkdir()

    def words(self) -> list[str]:
        """Return the container's command."""
        return [self._put(word) for word in self._box["command"]]

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command with the container's environment."""
        return subprocess.Popen(words, env=self._env, stdout=log.open("wb"), stderr=subprocess.STDOUT)

    def probed(self, name: str) -> bool:
        """Run a probe of the container."""
        words = [self._put(word) for word in self._box[name]["exec"]["command"]]
        done = subprocess.run([sys.executable, *words[1:]], env=self._env, capture_output=True)
        return done.returncode == 0

    def _put(self, word: str) -> str:
        for place, here in self._places.items():
            word = word.replace(place, here)
        return word


def _key(variable: dict[str, Any]) -> str:
    return variable["valueFrom"].get("secretKeyRef", {}).get("key", "")


def _run(args: argparse.Namespace, found: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    engine_port, server_port = free_port(), free_port()
    files = next(d["data"] for d in found if d["kind"] == "ConfigMap")
    url = f"127.0.0.1:{engine_port}"
    service = next(d["metadata"]["name"] for d in found if d["kind"] == "Service")
    for name, text in files.items():
        (folder / name).write_text(text.replace(f"{service}:{PORT}", url))
    keys = {name: secrets.token_hex(24) for name in ("engine", "server")}
    places = {
        FOLDER: str(folder),
        "/home/engine": str(folder / "home"),
        "/var/lib/freehold": str(folder / "data"),
        "0.0.0.0": "127.0.0.1",
        str(PORT): str(engine_port),
        "11435": str(server_port),
    }
    (folder / "home").mkdir()
    (folder / "data").mkdir(mode=0o2777)
    workloads = [d["spec"]["template"] for d in found if d["kind"] == "Deployment"]
    engine, server = (Pod(t, places, keys, folder / n) for t, n in zip(workloads, "es", strict=True))
    words = [args.python, *MODULE, str(args.model.absolute()), *engine.words()[3:]]
    freehold = [sys.executable, "-m", "freehold.cli.main", *server.words()[1:]]
    begun = time.monotonic()
    running = [engine.start(words, folder / "engine.log"), server.start(freehold, folder / "server.log")]
    try:
        return {
            "load_1m": round(os.getloadavg()[0], 1),
            **_watched(engine, server, begun + args.timeout, begun),
            "without_key": _status(f"http://{url}/v1/models"),
            "keys_in_logs": sum(key in (folder / log).read_text() for key in keys.values() for log in _LOGS),
        }
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=90)


_LOGS = ("engine.log", "server.log")


def _watched(engine: Pod, server: Pod, until: float, begun: float) -> dict[str, Any]:
    """Probe both until they are ready; our server must not be so first."""
    refused = early = 0
    while time.monotonic() < until:
        before = server.probed("readinessProbe")
        if engine.probed("readinessProbe"):
            ready_s = time.monotonic() - begun
            through = False
            while not through and time.monotonic() < until:
                through = server.probed("readinessProbe")
            print(f"engine ready after {ready_s:.0f} s and {refused} refusals; through our server: {through}")
            return {
                "ready_s": round(ready_s, 1),
                "refusals": refused,
                "server_ready_before_the_engine": early,
                "ready_through_our_server": through,
                "ready_through_our_server_s": round(time.monotonic() - begun, 1),
                "alive": [engine.probed("livenessProbe"), engine.probed("livenessProbe")],
            }
        refused, early = refused + 1, early + before
        time.sleep(1)
    return {"ready_s": None, "refusals": refused, "server_ready_before_the_engine": early}


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code


if __name__ == "__main__":
    main()
