"""Files of the other kinds: compose, systemd, SkyPilot; each valid by its own schema or program."""

from __future__ import annotations

import copy
import gzip
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from freehold.base import catalog
from freehold.base.errors import UsageError
from freehold.outgrow import drivers
from freehold.outgrow.contract import PlanRequest
from freehold.outgrow.emit import EmitOptions, emit, label
from freehold.outgrow.emit.kubernetes import documents
from freehold.outgrow.planning import facts
from tests.outgrow.emit.compose_rules import compose_faults

from .plans import OPTIONS, plan

SCHEMAS = Path(__file__).parent.parent / "schemas"
COMPOSE = jsonschema.Draft7Validator(
    json.loads(gzip.decompress((SCHEMAS / "compose-spec.schema.json.gz").read_bytes()))
)
TASK = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "skypilot-task-0.14.1.json").read_text()))
ONE: dict[str, Any] = {"nodes": 1, "tensor": 4, "pipeline": 1}


def composed(engine: str = "vllm", **more: Any) -> dict:
    (file,) = emit(plan(engine, **{**ONE, **more}), "compose", OPTIONS)
    return yaml.safe_load(file.text)


# --- compose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_compose_file_is_valid_and_publishes_our_server_alone(engine):
    found = composed(engine, replicas=2)
    assert list(COMPOSE.iter_errors(found)) == []
    assert [n for n, s in found["services"].items() if s.get("ports")] == ["server"]
    held = [
        s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for n, s in found["services"].items()
        if n != "server"
    ]
    assert held == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]


Mutation = Callable[[dict], Any]
WRONG: dict[str, Mutation] = {
    "imagee": lambda d: d["services"]["server"].update(imagee=d["services"]["server"].pop("image")),
    "restart a number": lambda d: d["services"]["server"].update(restart=1),
    "ports an object": lambda d: d["services"]["server"].update(ports={"11435": "11435"}),
    "a port on every address": lambda d: d["services"]["server"].update(ports=["11435:11435"]),
    "a port of an engine": lambda d: d["services"]["engine-0"].update(ports=["127.0.0.1:8000:8000"]),
    "an engine on the outer network": lambda d: d["services"]["engine-0"].update(networks=["outside"]),
    "an inner network that leads out": lambda d: d["networks"]["inside"].update(internal=False),
    "host network": lambda d: d["services"]["engine-0"].update(network_mode="host"),
    "a key inline": lambda d: d["services"]["engine-0"]["environment"].update(VLLM_API_KEY="7f3a"),
    "restart on failure alone": lambda d: d["services"]["engine-0"].update(restart="on-failure"),
    "no health check": lambda d: d["services"]["engine-0"].pop("healthcheck"),
    "a grace below the drain": lambda d: d["services"]["engine-0"].update(stop_grace_period="30s"),
    "a tag": lambda d: d["services"]["engine-0"].update(image="vllm/vllm-openai:latest"),
    "a model that can be written": lambda d: d["services"]["engine-0"]["volumes"][0].update(read_only=False),
    "three devices": lambda d: d["services"]["engine-0"]["deploy"]["resources"]["reservations"]["devices"][0][
        "device_ids"
    ].pop(),
}


@pytest.mark.parametrize("name", WRONG)
def test_mutation_of_a_compose_file_is_caught(name):
    made, found = plan("vllm", **ONE), copy.deepcopy(composed())
    assert not compose_faults(found, made)
    WRONG[name](found)
    assert [*COMPOSE.iter_errors(found), *compose_faults(found, made)]


def test_compose_refuses_two_machines_and_more_devices_than_there_are():
    with pytest.raises(UsageError, match="one machine"):
        emit(plan("vllm"), "compose", OPTIONS)
    with pytest.raises(UsageError, match="need 12"):
        emit(plan("vllm", **ONE, replicas=3), "compose", OPTIONS)


def test_compose_refuses_devices_that_it_cannot_reserve():
    with pytest.raises(UsageError, match="NVIDIA"):
        emit(plan("vllm", rig="8xmi300x", **ONE), "compose", OPTIONS)


def test_entry_of_an_engine_takes_its_key_from_a_file(tmp_path: Path):
    """The shell line as compose runs it: the key is in the environment, not among the words."""
    service = composed()["services"]["engine-0"]
    (tmp_path / "engine-key").write_text("k-1")
    script = service["entrypoint"][2].replace("$$", "$").replace("/run/secrets", str(tmp_path))
    words = ["env"]
    ran = subprocess.run(["/bin/sh", "-c", script, *words], capture_output=True, text=True, check=True)
    assert "VLLM_API_KEY=k-1" in ran.stdout


# --- systemd ------------------------------------------------------------------------------------------


def test_unit_starts_the_deployment_and_reaches_loopback_alone():
    (file,) = emit(plan("vllm", **ONE), "systemd", OPTIONS)
    assert file.name == "freehold-meta-llama-3-1-405b.service"
    assert (
        "ExecStart=/opt/freehold/bin/freehold deploy /srv/models/Llama-3.1-405B --engine vllm --context 32768"
        " --name meta/Llama-3.1-405B\n" in file.text
    )
    for line in ("IPAddressDeny=any", "IPAddressAllow=localhost", "Restart=always", "KillMode=mixed"):
        assert f"\n{line}\n" in file.text
    assert "\nEnvironment=TRITON_CACHE_DIR=/var/lib/freehold/compiled/triton\n" in file.text


@pytest.mark.parametrize("words", [("--host=0.0.0.0",), ("--host", "::", "--port=80")])
def test_unit_of_an_open_server_is_reached_from_private_networks(words):
    (file,) = emit(plan("vllm", **ONE), "systemd", replace(OPTIONS, start=("freehold", "deploy", *words)))
    assert "\nIPAddressDeny=any\nIPAddressAllow=localhost link-local 10.0.0.0/8 " in file.text
    closed = replace(OPTIONS, start=("freehold", "deploy", "--host=127.0.0.1"))
    assert "\nIPAddressAllow=localhost\n" in emit(plan("vllm", **ONE), "systemd", closed)[0].text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path):
    options = replace(OPTIONS, start=(sys.executable, "50% $x"), home=str(tmp_path), user="root")
    (file,) = emit(plan("vllm", **ONE, name='a "b" 50% $x'), "systemd", options)
    path = tmp_path / file.name
    path.write_text(file.text)
    ran = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.replace(str(path), "")) == (0, "")


# --- skypilot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_task_of_two_nodes_is_valid_and_its_script_is_a_shell_s(engine):
    (file,) = emit(plan(engine), "skypilot", OPTIONS)
    task = yaml.safe_load(file.text)
    assert list(TASK.iter_errors(task)) == []
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    subprocess.run(["bash", "-n"], input=task["run"] + task["setup"], text=True, check=True)
    assert "0.0.0.0" not in task["run"]


def test_misspelt_task_is_refused():
    (file,) = emit(plan("vllm"), "skypilot", OPTIONS)
    task = yaml.safe_load(file.text)
    task["num_node"] = task.pop("num_nodes")
    assert list(TASK.iter_errors(task))


def test_skypilot_refuses_what_needs_mpi():
    with pytest.raises(UsageError, match="MPI"):
        emit(plan("trtllm"), "skypilot", OPTIONS)


# --- ray ----------------------------------------------------------------------------------------------


def test_ray_gets_an_app_and_where_members_are_named_its_cluster():
    (alone,) = emit(plan("vllm", **ONE), "ray", OPTIONS)
    compile(alone.text, alone.name, "exec")
    found = emit(plan("vllm", **ONE), "ray", replace(OPTIONS, members=("10.0.0.7", "10.0.0.8")))
    texts = {file.name: file.text for file in found}
    assert set(texts) == {"app.py", "cluster.sh", "firewall.nft"}
    assert "10.0.0.7/32, 10.0.0.8/32" in texts["firewall.nft"]
    subprocess.run(["sh", "-n"], input=texts["cluster.sh"], text=True, check=True)


def test_replica_of_ray_over_two_nodes_is_refused():
    with pytest.raises(UsageError, match="one machine"):
        emit(plan("vllm"), "ray", OPTIONS)


# --- all ----------------------------------------------------------------------------------------------


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as refused:
        emit(plan("vllm"), "composed", OPTIONS)
    assert "did you mean compose?" in refused.value.hint


def test_engine_that_no_container_starts_is_refused():
    made = replace(plan("vllm", **ONE), engine="ollama")
    for kind in ("k8s", "compose", "skypilot"):
        with pytest.raises(UsageError, match="not for ollama"):
            emit(made, kind, OPTIONS)


def test_files_need_images():
    for kind in ("k8s", "compose", "skypilot"):
        with pytest.raises(UsageError, match="--image"):
            emit(plan("vllm", **ONE), kind, EmitOptions())


@pytest.mark.parametrize(
    "name, expected",
    [("meta/Llama-3.1", "meta-llama-3-1"), ("7b:x", "m-7b-x"), ("ä" * 50, "m"), ("a" * 60, "a" * 40)],
)
def test_label_is_a_dns_label(name, expected):
    assert label(name) == expected


# --- names and folders that others chose --------------------------------------------------------------

NAME = 'x\nservices: {}\r\n"$HEAD$(touch x)`id`$SKYPILOT_NODE_RANK'


def test_a_name_of_others_adds_no_line_to_a_file_and_no_command_to_a_script():
    found = composed(name=NAME)
    assert set(found) == set(composed()) and list(COMPOSE.iter_errors(found)) == []
    (file,) = emit(plan("vllm", name=NAME), "skypilot", OPTIONS)
    run = yaml.safe_load(file.text)["run"]
    assert shlex.quote(NAME) in run
    outside, _, heredoc = run.replace(shlex.quote(NAME), "").partition("<<'END'\n")
    assert "touch" not in outside + heredoc.partition("\nEND\n")[2]
    subprocess.run(["bash", "-n"], input=run, text=True, check=True)
    (file,) = emit(plan("vllm", **ONE, name=NAME), "systemd", replace(OPTIONS, start=("/bin/true",)))
    assert "services: {}\n" not in file.text
    with pytest.raises(UsageError, match="cannot be written"):
        emit(plan("vllm", **ONE, name=NAME), "systemd", replace(OPTIONS, start=("/bin/true", NAME)))
    with pytest.raises(UsageError, match="user's name"):
        emit(plan("vllm", **ONE), "systemd", replace(OPTIONS, user="me\nExecStartPre=/bin/evil"))


def test_a_folder_s_dollars_are_no_variables_of_compose():
    made = plan("vllm", **ONE)
    made = replace(made, model=replace(made.model, source="/srv/$HOME/m"), flags=made.flags[1:])
    (file,) = emit(made, "compose", OPTIONS)
    assert yaml.safe_load(file.text)["services"]["engine-0"]["volumes"][0]["source"] == "/srv/$$HOME/m"


def test_a_name_of_others_is_no_variable_of_a_pod():
    name = "$(LWS_A)$(VLLM_API_KEY)"
    found = json.dumps(documents(plan("vllm", name=name), OPTIONS))
    assert f'"--served-model-name", "{name.replace("$(", "$$(")}"' in found


def test_a_disk_of_skypilot_holds_the_weights():
    def disk(name: str) -> int:
        made = drivers.driver("vllm").plan(
            PlanRequest(facts.of_catalogue(catalog.model(name)), facts.nodes_on("8xh200"), replicas=1)
        )
        task = yaml.safe_load(emit(made, "skypilot", OPTIONS)[0].text)
        return task["resources"]["disk_size"]

    small, large = disk("qwen3:8b"), disk("deepseek-ai/DeepSeek-V3")
    assert 150 < small < 256 and 900 < large < 1300
