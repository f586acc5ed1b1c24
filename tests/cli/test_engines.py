"""`run` and `serve` with other engines: a llama-server on PATH that speaks its recorded dialect, and faked GPUs."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

from freehold.choose.advisor.machine import Gpu
from freehold.outgrow import finding
from tests.cli.test_serve import freehold, started
from tests.formats.gguf_writer import SMALL_METADATA, SMALL_TENSORS, Value
from tests.formats.gguf_writer import write_gguf as small_gguf
from tests.outgrow import standin
from tests.vectors.files import write_gguf

GIB = 1 << 30
# Not in the catalogue: it has no prediction, and is taken where its memory holds the model.
CARD = Gpu("NVIDIA GeForce RTX 9999", 48 * GIB, 47 * GIB, "")
LISTED = "Available devices:\n  CUDA0: NVIDIA GeForce RTX 9999 (49140 MiB, 48000 MiB free)\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_gguf("llama", tmp_path_factory.mktemp("engines") / "tiny.gguf", dtype="Q8_0"))


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PATH with a llama-server that lists a GPU and speaks as llama.cpp does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "llama-server"
    speaks = shlex.join(standin.command("llamacpp"))
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in *--list-devices*) cat <<'E'\n{LISTED}E\nexit;;\n"
        f'--version) echo "version: 10434 (0123abcd)" >&2; exit;; esac\nexec {speaks} "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.cli.chat.opened.driven", lambda: True)
    monkeypatch.setattr(finding, "driven", lambda: True)
    monkeypatch.setattr(finding, "accelerators", lambda: ((CARD,), ""))


@pytest.mark.heavy
def test_run_by_llama_server_that_was_asked_for(tmp_path, tiny, path):
    done = freehold(tmp_path, "run", tiny, "Hi", "--engine", "llamacpp", "--max-tokens", "6", PATH=path)
    assert done.status == 0, done.err
    assert done.out.strip()
    assert "engine:" not in done.err  # nothing was chosen


@pytest.mark.usefixtures("gpu")
def test_run_takes_the_engine_of_a_gpu_and_says_why(tmp_path, tiny, path):
    done = freehold(tmp_path, "run", tiny, "Hi", "--max-tokens", "6", PATH=path)
    assert done.status == 0, done.err
    assert "engine: llamacpp: the catalogue has no figures of NVIDIA GeForce RTX 9999" in done.err
    assert done.out.strip()


@pytest.mark.usefixtures("gpu")
def test_run_without_an_engine_for_the_gpu_says_what_would_help_and_computes(tmp_path, tiny):
    done = freehold(tmp_path, "run", tiny, "Hi", "--max-tokens", "6", PATH="/usr/bin:/bin")
    assert done.status == 0, done.err
    assert "engine: Freehold's engine on the CPU: NVIDIA GeForce RTX 9999 is available" in done.err
    assert "note: llama-server built with CUDA" in done.err
    assert done.out.strip()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("own", [["--engine", "freehold"], ["--kv-type", "q8"], ["--threads", "1"]])
def test_options_of_our_engine_keep_the_model_in_it(tmp_path, tiny, path, own):
    done = freehold(tmp_path, "run", tiny, "Hi", "--max-tokens", "6", *own, PATH=path)
    assert done.status == 0, done.err
    assert "llamacpp" not in done.err


def test_without_a_gpu_nothing_is_said_of_engines(tmp_path, tiny, path, monkeypatch):
    monkeypatch.setattr("freehold.cli.chat.opened.driven", lambda: False)
    done = freehold(tmp_path, "run", tiny, "Hi", "--max-tokens", "6", PATH=path)
    assert done.status == 0, done.err
    assert "engine" not in done.err


def test_option_of_ours_beside_another_engine_is_refused(tmp_path, tiny, path):
    done = freehold(tmp_path, "run", tiny, "Hi", "--engine", "llamacpp", "--kv-type", "q8", PATH=path)
    assert done.status == 2
    assert "--kv-type is for Freehold's engine" in done.err


def test_engine_that_does_not_load_the_file_is_refused_with_one_that_does(tmp_path, tiny):
    done = freehold(tmp_path, "run", tiny, "Hi", "--engine", "vllm")
    assert done.status == 2
    assert "--engine llamacpp" in done.err


def test_engine_that_dies_at_its_start_leaves_the_way_back(tmp_path, tiny):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-server").write_text(
        "#!/bin/sh\necho 'error: no such device' >&2\nexit 1\n", encoding="utf-8"
    )
    (folder / "llama-server").chmod(0o755)
    found = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = freehold(tmp_path, "run", tiny, "Hi", "--engine", "llamacpp", PATH=found)
    assert done.status == 1
    assert "tiny:" in done.err
    assert "--engine freehold runs on the CPU" in done.err


@pytest.mark.heavy
@pytest.mark.long
def test_serve_by_llama_server_answers_under_the_model_s_own_name(tmp_path, tiny, path, monkeypatch):
    import httpx2

    monkeypatch.setenv("PATH", path)
    with started(tmp_path, "serve", tiny, "--engine", "llamacpp", "--port", "0", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        url = json.loads(line)["url"]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        told = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert told["freehold"]["engine"]["name"].startswith("llamacpp"), told
        names = [m["id"] for m in httpx2.get(f"{url}/v1/models", timeout=60).json()["data"]]
        assert names.count("tiny") == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not (tmp_path / "deployments").exists()


def test_python_deploys_and_ends_an_engine(tmp_path, tiny, path, monkeypatch):
    import freehold as package
    from freehold.base.config import load_settings
    from freehold.base.errors import UsageError
    from freehold.base.types import Message

    monkeypatch.setenv("PATH", path)
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path / "home")})
    with package.deploy(tiny, engine="llamacpp", settings=settings) as llm:
        assert "".join(c.text for c in llm.stream([Message("user", "Hi")], max_tokens=4))
        assert llm.info.context > 0
    for deploy in (package.deploy, package.plan_deployment):
        with pytest.raises(UsageError, match="'replica'"):
            deploy(tiny, replica=2, settings=settings)
    plan = package.plan_deployment("qwen3:32b", on="2xh100", engine="vllm", settings=settings)
    assert plan.engine == "vllm"


@pytest.mark.parametrize(
    "option",
    [
        {"streams": -1},
        {"replicas": -1},
        {"streams": 2.5},
        {"streams": 10**20},
        {"nodes": "2"},
        {"flags": "--max-num-seqs=64"},
    ],
)
def test_python_refuses_what_is_not_a_count_and_a_text_for_a_list(tmp_path, option):
    import freehold as package
    from freehold.base.config import load_settings
    from freehold.base.errors import UsageError

    settings = load_settings({"FREEHOLD_HOME": str(tmp_path / "home")})
    with pytest.raises(UsageError, match=next(iter(option))):
        package.plan_deployment("qwen3:32b", on="2xh100", engine="vllm", settings=settings, **option)


@pytest.mark.heavy
def test_python_takes_vectors_from_an_engine(tmp_path, path, monkeypatch):
    import freehold as package
    from freehold.base.config import load_settings
    from freehold.base.errors import UpstreamFailed, UsageError

    monkeypatch.setenv("PATH", path)
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path / "home")})
    pools = SMALL_METADATA | {"llama.pooling_type": Value(4, 3)}
    model = str(small_gguf(tmp_path / "vectors.gguf", pools, SMALL_TENSORS))
    with package.deploy(model, engine="llamacpp", settings=settings) as llm:
        found, alone = llm.embed(["a cat", "a dog"]), llm.embed("a dog")
        assert found.vectors.shape == (2, 8) and len(found.tokens) == 2
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)
        assert np.array_equal(found.vectors[1:], alone.vectors)
        with pytest.raises(UsageError, match="0 texts"):
            llm.embed([])
        with pytest.raises(UpstreamFailed):
            next(llm.stream([package.Message("user", "Hi")]))


@pytest.mark.heavy
def test_python_looks_after_an_engine_as_the_verbs_do(tmp_path, tiny, path, monkeypatch):
    import freehold as package
    from freehold.base.config import load_settings
    from freehold.base.errors import EngineClosed, UsageError

    monkeypatch.setenv("PATH", path)
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path / "home")})
    with package.deploy(tiny, name="mine", engine="llamacpp", settings=settings) as llm:
        (first,) = llm.status().replicas
        assert first.state == "ready" and first.pid and llm.logs()
        (second,) = llm.restart(drain_first=True).replicas
        assert second.state == "ready" and second.pid != first.pid
        row = llm.upgrade(context=256, drain_first=True)
        assert (row.name, row.plan.context, llm.info.context) == ("mine", 256, 256)
        with pytest.raises(UsageError, match="--no-such-flag"):
            llm.upgrade(flags=("--no-such-flag=1",))
        assert llm.status().ready
        llm.stop(drain_s=5)
        with pytest.raises(EngineClosed, match="was stopped"):
            llm.status()
