"""A Ray Serve app as one plan: what starts, what is said of its doors, what is refused; its driver; its files."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan, EngineFacts, EngineNumbers, Listens
from freehold.outgrow.emit import EmitOptions, emit
from freehold.outgrow.engines.own import OwnEngine
from freehold.outgrow.planning.options import SOCKET
from freehold.outgrow.ray import plan as doors
from freehold.outgrow.ray.plan import SESSION, RayDriver, app_text, is_ray, moved, over, over_ray, text_for
from freehold.route.providers.contract import Provider, RemoteModel
from tests.outgrow.plans import plan

RAY = EngineFacts("2.60.0", ("/opt/ray/bin/python",))


def inner(**changes: Any) -> DeployPlan:
    return replace(plan(), listens=Listens(SOCKET), **changes)


def test_an_app_is_one_replica_of_ours_whatever_it_holds():
    made = over(inner(), RAY)
    assert (made.engine, made.replicas, made.inner) == ("ray", 1, inner())
    assert made.streams == 2 * 64
    assert made.listens.socket == Path("{folder}/ray.sock")
    assert [secret.variable for secret in made.secrets] == ["FREEHOLD_INGRESS_KEY", "RAY_AUTH_TOKEN"]


def test_a_fenced_cluster_starts_in_a_namespace_and_says_so():
    made = over(inner(), RAY, fenced=True)
    assert made.argv()[: len(doors.FENCE)] == doors.FENCE
    assert "--fenced" in made.argv()
    assert any("its own network namespace" in note for note in made.notes)


def test_without_a_namespace_the_plan_names_the_one_port_that_stays_open():
    made = over(inner(), RAY)
    assert made.argv()[0] == "/opt/ray/bin/python"
    assert any("one port of each replica (of 32768-60999)" in note for note in made.notes)


def test_a_cluster_that_runs_is_used_and_never_started():
    made = over(inner(), RAY, address="ray://head:26308", fenced=True)
    assert "unshare" not in made.argv() and "--port" not in made.argv()
    assert made.secrets[1].source == "env:RAY_AUTH_TOKEN"
    assert not made.nodes.here
    for wrong in ("http://head:8265", "ray://[::1", "ray://", "ray://head:99999"):
        with pytest.raises(UsageError, match="not the address of a Ray cluster"):
            over(inner(), RAY, address=wrong)


def test_old_ray_and_engines_that_cannot_be_replicas_are_refused():
    with pytest.raises(UsageError, match=r"Ray 2\.53\.0 is older than 2\.54\.0"):
        over(inner(), EngineFacts("2.53.0"))
    with pytest.raises(UsageError, match="ollama does not run as a replica"):
        over(inner(engine="ollama"), RAY)


def test_a_second_cluster_of_this_machine_has_other_ports_throughout():
    made = over(inner(), RAY, most=3)
    again = moved(made, 30000)
    for plan_, base in ((made, doors.BASE), (again, 30000)):
        given = {flag.name: flag.value for flag in plan_.flags} | dict(plan_.environment)
        named = doors.named_ports(base)
        assert given["--ingress-port"] == str(named.pop("ingress"))
        assert {name: given[name] for name in named} == {name: str(port) for name, port in named.items()}
        assert f"'ingress_port': {base + doors.INGRESS}" in text_for(plan_)
    assert again.environment["FREEHOLD_MOST_REPLICAS"] == "3"
    assert again.command == made.command


def test_a_base_whose_ports_are_taken_is_passed_over():
    with socket.socket() as taken:
        base = doors.free_base()
        taken.bind(("127.0.0.1", doors.named_ports(base)["--dashboard-port"]))
        taken.listen()
        assert doors.free_base() > base


def test_more_replicas_by_the_queue_are_told_to_the_app_by_its_environment():
    assert over(inner(), RAY, most=6).environment["FREEHOLD_MOST_REPLICAS"] == "6"
    assert over(inner(), RAY).environment["FREEHOLD_MOST_REPLICAS"] == "2"


def test_our_own_engine_is_a_replica_by_a_link_to_its_file():
    from freehold.outgrow.contract import PlanRequest

    model = replace(plan().model, name="smollm2:135m", source="/models/x.gguf", files="gguf")
    made = OwnEngine().plan(PlanRequest(model, plan().nodes, EngineFacts(command=("freehold",)), replicas=2))
    text = app_text(made)
    assert "'links': {'smollm2:135m.gguf': '/models/x.gguf'}" in text
    assert made.argv()[:3] == ("freehold", "serve", "{folder}/smollm2:135m.gguf")
    with pytest.raises(UsageError, match="reads GGUF"):
        OwnEngine().plan(PlanRequest(replace(model, files="safetensors"), plan().nodes))


def test_the_app_speaks_as_its_replicas_do_and_names_a_session_by_the_prompts_beginning():
    driver = drivers.driver_of(over(inner(), RAY))
    assert isinstance(driver, RayDriver) and driver.inner.name == "vllm"
    remote = RemoteModel(Provider("x", "openai-compatible", "http://engine/v1"), "m")

    def session(system: str, question: str) -> str | None:
        job = Job(messages=(Message("system", system), Message("user", question)))
        return driver.wire.request(remote, job, stream=True).headers.get(SESSION)

    long = "You are a careful assistant. " * 30
    assert session(long, "first") == session(long, "first") != session(long, "second")
    assert session("short", "hi") is None
    plain = driver.inner.wire.request(remote, Job(prompt="x" * 999), stream=True)
    assert driver.wire.request(remote, Job(prompt="x" * 999), stream=True).body == plain.body


def test_numbers_are_the_sum_of_all_replicas():
    class Inner:
        metrics_path, wire = "/metrics", None

        def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
            held = dict(line.split() for line in body.decode().splitlines())
            return EngineNumbers(int(held["running"]), generated_tokens=int(held["n_total"]), series={"s": 1})

    driver: Any = RayDriver(Inner())  # type: ignore[arg-type]
    body = b'running{replica="a"} 2\nn_total{replica="a"} 5\nrunning{replica="b"} 1\nn_total{replica="b"} 7\n'
    found = driver.numbers(body)
    assert (found.running, found.generated_tokens) == (3, 12)
    assert set(found.series) == {'s{ray_replica="a"}', 's{ray_replica="b"}'}


def test_emitted_files_hold_no_secret_and_bind_nothing_unnamed(tmp_path: Path):
    files = {file.name: file.text for file in emit(inner(), "ray", EmitOptions(members=("10.0.0.7",)))}
    assert set(files) == {"app.py", "cluster.sh", "firewall.nft"}
    compile(files["app.py"], "app.py", "exec")
    script = tmp_path / "cluster.sh"
    script.write_text(files["cluster.sh"])
    subprocess.run(["sh", "-n", str(script)], check=True)
    for name, port in doors.named_ports().items():
        assert f"tcp dport {port} drop" in files["firewall.nft"]
        assert str(port) in files["cluster.sh"], name
    assert "RAY_AUTH_MODE=token" in files["cluster.sh"]
    missing = subprocess.run(["/bin/sh", str(script), "head", "10.0.0.7"], env={}, capture_output=True)
    assert missing.returncode != 0 and b"RAY_AUTH_TOKEN" in missing.stderr


def test_planning_imports_no_ray():
    code = "import sys, freehold.outgrow.ray.plan, freehold.outgrow.ray.plan; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("on", ["ray", "ray:/opt/ray/bin/python", "ray://head:26308"])
def test_on_ray_is_no_hardware(on: str):
    assert is_ray(on)
    assert not is_ray("rayon") and not is_ray("8xh100")


def test_an_app_is_planned_without_a_ray_and_started_with_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert over_ray(inner(), "ray", start=False).engine == "ray"
    with pytest.raises(UsageError, match="no Ray is on PATH"):
        over_ray(inner(), "ray")


def test_the_ray_of_an_environment_is_known_by_its_metadata(tmp_path: Path):
    python = tmp_path / "bin" / "python"
    (tmp_path / "lib" / "python3.11" / "site-packages" / "ray-2.60.0.dist-info").mkdir(parents=True)
    made = over_ray(inner(), f"ray:{python}")
    assert (made.version, made.engine) == ("2.60.0", "ray")
    assert str(python) in made.argv()
    with pytest.raises(UsageError, match="no Ray next to it"):
        over_ray(inner(), f"ray:{tmp_path}/elsewhere/bin/python")
