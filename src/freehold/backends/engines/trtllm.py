"""TensorRT-LLM's trtllm-serve: its plan. It listens on loopback and has no key at all.

Its telemetry is on unless it is switched off twice. Several nodes start under MPI, whose ranks it takes: every node
runs the same line. Knows trtllm-serve; knows no process.
Path: drivers.driver -> Trtllm.plan -> planning.laid_out, Wording -> DeployPlan
"""

from __future__ import annotations

from dataclasses import replace

from freehold.backends.contract import DeployPlan, EngineName, Listens, PlanRequest
from freehold.backends.engines.trtllm_dialect import TrtllmServer
from freehold.backends.planning.layout import EngineTraits, Layout, Wishes
from freehold.backends.planning.misfits import stretch_of
from freehold.backends.planning.parallel import attention
from freehold.backends.planning.planning import laid_out
from freehold.backends.planning.wording import Wording, narrow, opened, share, source, wanted
from freehold.backends.process.surroundings import PRIVATE
from freehold.errors import UsageError

TRAITS = EngineTraits("tensorrt-llm", "TensorRT-LLM", cpu=False, fp8_while_loading=False)
COMMAND = ("trtllm-serve",)
ACROSS = ("trtllm-llmapi-launch",)  # goes before the command where MPI starts it on several nodes
ENVIRONMENT = {**PRIVATE, "TRTLLM_NO_USAGE_STATS": "1"}
OPEN = "trtllm-serve has no key: other users on this machine can reach its port on loopback"
MPI = "several nodes start under MPI: srun --mpi=pmix or mpirun runs this line once for each device"


class Trtllm(TrtllmServer):
    """Implements contract.EngineDriver; trtllm_dialect.py has the half that runs it."""

    name: EngineName = "trtllm"
    package = "tensorrt-llm"
    least = "1.2.1"

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan a start. Raises UsageError: unknown and dangerous flags, a misfit with what would fit."""
        words = opened(request, self.name, self.title, self.least)
        layout = laid_out(request, TRAITS, _wishes(words))
        environment = dict(ENVIRONMENT)
        listens = Listens(port=request.port)
        loads = source(request, environment, words.notes)
        _flags(words, layout, listens)
        words.notes.append(MPI if layout.across > 1 else OPEN)
        launcher = ACROSS if layout.across > 1 else ()
        command = (*launcher, *(request.engine.command or COMMAND), loads)
        return words.plan("trtllm", command, layout, environment, listens=listens)


def _wishes(words: Wording) -> Wishes:
    expert = words.number("--ep_size")
    sizes = wanted(words, "--tp_size", "--pp_size", "", expert > 1 if expert else None)
    if words.off("--enable_attention_dp"):  # each of its devices attends to sequences of its own
        sizes = replace(sizes, tensor=1, data=sizes.tensor, expert=True)
    return Wishes(
        sizes=sizes,
        context=words.number("--max_seq_len"),
        streams=words.number("--max_batch_size"),
        cache_type=narrow(words.value("--kv_cache_dtype")),
        memory_share=share("--free_gpu_memory_fraction", words.value("--free_gpu_memory_fraction")),
    )


def _flags(words: Wording, layout: Layout, listens: Listens) -> None:
    why, add = layout.why, words.add
    add("--served_model_name", words.request.model.name, "the deployment's name")
    words.listens(listens)
    _parallel(words, layout)
    words.context("--max_seq_len", layout)
    if stretch_of(words.request.model, layout.context):
        raise UsageError(
            f"a context of {layout.context:,} tokens: trtllm-serve has no flag that stretches one",
            f"--context {words.request.model.anatomy.context}, or --engine vllm",
        )
    add("--max_batch_size", -(-layout.streams // layout.sizes.data), why["streams"])
    add("--free_gpu_memory_fraction", f"{layout.memory_share:g}", "of what weights leave, for the cache")
    if layout.cache_type:
        add("--kv_cache_dtype", layout.cache_type, why.get("cache_type", "asked for"))
    words.parsers("trtllm", "--tool_parser", "--reasoning_parser")
    add("--no-telemetry", True, "on by default; it reports even how the process ended")


def _parallel(words: Wording, layout: Layout) -> None:
    sizes, why, add = layout.sizes, layout.why, words.add
    apart = attention(sizes)
    if sizes.tensor * apart > 1:
        add("--tensor_parallel_size", sizes.tensor * apart, why["tensor"])
    if apart > 1:
        add("--enable_attention_dp", True, why["data"])
    if sizes.pipeline > 1:
        add("--pipeline_parallel_size", sizes.pipeline, why["pipeline"])
    if sizes.expert > 1:
        add("--moe_expert_parallel_size", sizes.expert, why["expert"])
    if layout.across > 1:
        add("--gpus_per_node", words.request.nodes.rig.count, "how many devices each node has")


DRIVER = Trtllm()
