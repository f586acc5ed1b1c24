"""Plans of llama.cpp, Ollama and MLX: their flags, what they refuse, what does not fit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.catalog.hardware import Rig, rig
from freehold.base.errors import UsageError
from freehold.outgrow import drivers
from freehold.outgrow.contract import EngineFacts, PlanRequest
from freehold.outgrow.engines.llamacpp import build_of, fitted
from freehold.outgrow.flags import nearest, schema_of_help
from tests.outgrow import dialects
from tests.outgrow.engines import synchronous
from tests.outgrow.plans import CPU

BINARY = """----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use (default: 'auto')
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, q8_0
                                        (default: f16)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers, an exact number, 'auto', or 'all' (default: auto)
--temp, --temperature N                 temperature (default: 0.80)
--mlock                                 DEPRECATED in favor of `--load-mode`

----- example-specific params -----

--sse-ping-interval N                   server SSE ping interval in seconds (-1 = disabled, default: 30)
--no-host                               bypass host buffer
"""


def request(engine: str, *flags: str, **more: object) -> PlanRequest:
    made = dialects.request(engine)
    return replace(made, engine=EngineFacts(made.engine.version), flags=flags, **more)  # type: ignore[arg-type]


def flags_of(engine: str, *flags: str, **more: object) -> dict[str, str | None]:
    plan = drivers.driver(engine).plan(request(engine, *flags, **more))
    return {flag.name: flag.value for flag in plan.flags}


def refused(engine: str, *flags: str, **more: object) -> str:
    with pytest.raises(UsageError) as error:
        drivers.driver(engine).plan(request(engine, *flags, **more))
    return f"{error.value.message} | {error.value.hint}"


def test_help_of_a_binary_is_read_as_flags() -> None:
    schema = schema_of_help(BINARY, "1")
    kinds = {name: (spec.kind, spec.choices) for name, spec in schema.flags.items()}
    assert kinds == {
        "--help": ("switch", ()),
        "--threads": ("int", ()),
        "--flash-attn": ("text", ("on", "off", "auto")),
        "--kv-offload": ("on-off", ()),
        "--cache-type-k": ("text", ("f32", "f16", "q8_0")),
        "--gpu-layers": ("text", ()),
        "--temp": ("float", ()),
        "--mlock": ("switch", ()),
        "--sse-ping-interval": ("int", ()),
        "--no-host": ("switch", ()),
    }
    assert schema.flags["--mlock"].status == "deprecated"
    found = schema.find("-nkvo")
    assert found is not None and found.name == "--kv-offload"


def test_every_flag_of_a_real_build_is_known() -> None:
    schema = nearest("llamacpp", "10434")
    assert len(schema.flags) == 248
    for spelling in ("-ngl", "-np", "--no-ui", "--no-webui", "-c", "--api-key-file", "--sse-ping-interval"):
        assert schema.find(spelling) is not None, spelling


def test_llama_server_listens_on_a_socket_with_its_doors_closed(tmp_path: Path) -> None:
    plan = drivers.driver("llamacpp").plan(
        request("llamacpp", socket=tmp_path / "e.sock", context=2048, streams=3)
    )
    flags = {flag.name: flag.value for flag in plan.flags}
    assert flags["--host"] == str(tmp_path / "e.sock") and "--port" not in flags
    assert flags["--ctx-size"] == "6144" and flags["--parallel"] == "3" and plan.context == 2048
    assert flags["--gpu-layers"] == "all" and flags["--cors-origins"] == "localhost"
    assert {"--no-ui", "--no-slots", "--offline", "--metrics", "--jinja"} <= flags.keys()
    assert [s.variable for s in plan.secrets] == ["LLAMA_API_KEY"]
    assert all(flag.reason for flag in plan.flags)
    assert "LLAMA_API_KEY=$LLAMA_API_KEY" in plan.shell()


def test_model_that_gives_vectors_is_started_for_them_and_one_that_gives_scores_is_refused() -> None:
    """Without the flag llama-server has no route of vectors; a text longer than a batch is refused by most of them."""
    made = request("llamacpp").model
    embedder = replace(made, anatomy=replace(made.anatomy, role="embedder"))
    flags = flags_of("llamacpp", model=embedder, context=2048, streams=3)
    assert "--embedding" in flags and flags["--batch-size"] == flags["--ubatch-size"] == "2048"
    assert "--embedding" not in flags_of("llamacpp")
    ranker = replace(made, anatomy=replace(made.anatomy, role="reranker"))
    for engine in ("llamacpp", "ollama"):
        assert "use a model that gives vectors" in refused(engine, model=ranker)


def test_memory_of_vectors_has_the_buffer_of_a_batch_as_long_as_the_context() -> None:
    made = request("llamacpp").model
    driver, nodes = drivers.driver("llamacpp"), replace(dialects.request("llamacpp").nodes, rig=Rig(CPU))

    def memory(*own: str, role: str = "embedder", architecture: str = "qwen2") -> int:
        anatomy = replace(made.anatomy, role=role, architecture=architecture)
        given = request("llamacpp", *own, model=replace(made, anatomy=anatomy), context=2048, nodes=nodes)
        return driver.plan(given).memory_bytes

    batch = 2048 * (4 * made.anatomy.vocab + 16 * made.anatomy.hidden + 2 * 2048)
    assert memory() - memory(role="generator") == batch
    assert memory() - memory(architecture="nomic-bert") == 2048 * 4 * made.anatomy.vocab
    assert memory("--ubatch-size=512") == memory(role="generator")


def test_llama_server_without_a_socket_has_a_free_port_of_loopback() -> None:
    flags = flags_of("llamacpp")
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "{port}")


def test_own_flags_go_before_the_plans() -> None:
    flags = flags_of("llamacpp", "-np=2", "--ctx-size=4096", "-ngl=10")
    assert (flags["--parallel"], flags["--ctx-size"], flags["--gpu-layers"]) == ("2", "4096", "10")


def test_quantised_cache_turns_flash_attention_on() -> None:
    flags = flags_of("llamacpp", cache_type="q8_0")
    assert (flags["--cache-type-k"], flags["--cache-type-v"], flags["--flash-attn"]) == ("q8_0", "q8_0", "on")
    assert "it has f32" in refused("llamacpp", cache_type="fp8")


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--host=0.0.0.0", "beyond this machine"),
        ("--api-key=x", "command line"),
        ("--api-key-file=x", "by environment"),
        ("-lv=5", "what people ask"),
        ("-v", "what people ask"),
        ("--log-prompts-dir=/tmp", "log"),
        ("--tools=all", "runs tools"),
        ("--webui", "opens routes"),
        ("--slots", "opens routes"),
        ("--props", "opens routes"),
        ("--rpc=host:1", "any tensor"),
        ("-hf=a/b", "from elsewhere"),
        ("--model-url=http://x", "from elsewhere"),
        ("--media-path=/", "files"),
        ("--cors-origins=*", "browsers"),
        ("--threds=4", "--threads"),
        ("--threads=four", "a whole number"),
        ("--flash-attn=maybe", "on, off, auto"),
    ],
)
def test_dangerous_and_wrong_flags_of_llama_server_are_refused(flag: str, said: str) -> None:
    assert said in refused("llamacpp", flag)


def test_builds_with_holes_are_refused_and_unknown_ones_taken() -> None:
    old = replace(request("llamacpp"), engine=EngineFacts("8000"))
    with pytest.raises(UsageError, match="older than 8146"):
        drivers.driver("llamacpp").plan(old)
    with pytest.raises(UsageError, match=r"older than 0\.35\.0"):
        drivers.driver("ollama").plan(replace(request("ollama"), engine=EngineFacts("0.34.2")))
    drivers.driver("llamacpp").plan(replace(old, engine=EngineFacts("")))


def test_older_build_starts_without_the_flags_that_it_lacks_and_refuses_those_of_the_user() -> None:
    plan = drivers.driver("llamacpp").plan(request("llamacpp", "--fit=off"))
    old = "\n".join(
        f"{name}  words" for name in ("--model FNAME", "--ctx-size N", "--gpu-layers N", "--fit [on|off]")
    )
    fit = fitted(plan, old)
    assert [flag.name for flag in fit.flags] == ["--model", "--ctx-size", "--gpu-layers", "--fit"]
    with pytest.raises(UsageError, match="this llama-server has no flag --fit"):
        fitted(plan, old.replace("--fit [on|off]", "--fits [on|off]"))
    assert fitted(plan, "no help at all") is plan


@pytest.mark.parametrize(
    "printed, build",
    [
        ("version: 6123 (79c1160b)\nbuilt with cc", "6123"),
        ("version: 0.1.0-dev (build 10434, commit 7e4c0a9)", "10434"),
        ("version: 0.1.0-dev (build 1, commit 7e4c0a9)", ""),
        ("nothing", ""),
    ],
)
def test_build_is_read_from_what_a_binary_prints(printed: str, build: str) -> None:
    assert build_of(printed) == build


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's script")
@synchronous
async def test_build_below_the_least_is_refused_before_it_starts(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 8000 (abc)' >&2\n")
    program.chmod(0o755)
    made = replace(
        request("llamacpp", socket=tmp_path / "e.sock"), engine=EngineFacts(command=(str(program),))
    )
    driver = drivers.driver("llamacpp")
    with pytest.raises(UsageError, match=r"llama\.cpp 8000 is older than 8146"):
        await driver.launch(driver.plan(made), tmp_path)


def test_ollama_has_no_flags_and_its_settings_are_variables() -> None:
    plan = drivers.driver("ollama").plan(request("ollama", streams=2, context=4096, cache_type="q8_0"))
    assert plan.argv() == ("ollama", "serve") and not plan.secrets
    assert (
        plan.environment["OLLAMA_NUM_PARALLEL"] == "2" and plan.environment["OLLAMA_CONTEXT_LENGTH"] == "4096"
    )
    assert plan.environment["OLLAMA_NO_CLOUD"] == "1" and plan.environment["OLLAMA_HOST"].startswith(
        "127.0.0.1"
    )
    assert plan.environment["OLLAMA_FLASH_ATTENTION"] == "1"
    assert any("no key" in note for note in plan.notes)
    assert "takes no flags" in refused("ollama", "--port=1")


def test_ollama_found_on_path_is_started_as_a_server() -> None:
    """`ollama` without a word opens a menu and ends."""
    found = replace(request("ollama"), engine=EngineFacts(command=("/usr/bin/ollama",)))
    assert drivers.driver("ollama").plan(found).argv() == ("/usr/bin/ollama", "serve")


def test_name_that_ollama_would_not_take_is_refused() -> None:
    made = request("ollama")
    with pytest.raises(UsageError, match="not a name that Ollama gives"):
        drivers.driver("ollama").plan(replace(made, model=replace(made.model, name="a name")))


def test_mlx_is_for_macs_and_closed_as_far_as_it_can_be() -> None:
    flags = flags_of("mlx")
    assert flags["--host"] == "127.0.0.1" and flags["--allowed-origins"] == "http://127.0.0.1"
    assert "Apple silicon" in refused("mlx", nodes=replace(request("mlx").nodes, rig=rig("h100")))
    assert "own code" in refused("mlx", "--trust-remote-code") or "code" in refused(
        "mlx", "--trust-remote-code"
    )


@pytest.mark.parametrize(
    "engine, files", [("llamacpp", "safetensors"), ("ollama", "safetensors"), ("mlx", "gguf")]
)
def test_files_of_another_kind_are_refused_with_the_engine_that_loads_them(engine: str, files: str) -> None:
    made = request(engine)
    said = refused(engine, model=replace(made.model, files=files))
    assert "--engine llamacpp" in said if files == "gguf" else "--engine vllm" in said


@pytest.mark.parametrize("engine", ["llamacpp", "ollama", "mlx"])
def test_misfits_say_what_would_fit(engine: str) -> None:
    assert "was made for 8,192" in refused(engine, context=100_000)
    assert "plan one, with --replicas 2" in refused(engine, nodes=replace(request(engine).nodes, count=2))
    assert "300 streams are not within 1..256" in refused(engine, streams=300)


def test_processor_with_little_memory_holds_no_large_cache() -> None:
    from freehold.base.catalog.hardware import Rig

    small = replace(CPU, memory_gib=0.3)
    nodes = replace(request("llamacpp").nodes, rig=Rig(small))
    assert "and cpu can hold" in refused("llamacpp", nodes=nodes, streams=64)
    assert flags_of("llamacpp", nodes=replace(nodes, rig=Rig(CPU)))["--gpu-layers"] == "0"
