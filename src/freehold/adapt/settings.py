"""The settings of the verbs that make a model, which are their options too: `AlignSettings(beta=-3)` is refused.

Knows names, ranges and helps; imports no torch and no NumPy until a model is bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from freehold.base.options import check, option
from freehold.base.types import MAX_SEED

if TYPE_CHECKING:
    from freehold.adapt.training.steps import Optimizer
    from freehold.adapt.training.trainee import Beneath, Trainee

WARMUP = 0.1  # share of the steps
CAP = 2.0  # of a token's weight
MOST_MISMATCH = 0.15  # nats per token; 0.03 to 0.08 is usual as served, 0.66 was a prompt off its template
TOKENS = 49_152  # that a quantisation calibrates on
UNTIL = 0.05  # the half-width of a mean divergence, as a share of it, at which a report may stop
Loss = Literal["dr_grpo", "dapo"]
Personal = Literal["leave-out", "show", "keep"]
_BFLOAT16 = "Multiply in bfloat16, which is faster on processors with AMX and on AMD's with AVX512_BF16"
_REPLAY = "Samples of MODEL's own text replayed per step, to reduce forgetting"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingSettings:
    """How a model file is calibrated and compared with what it is made of."""

    tokens: int = option(TOKENS, "Maximum tokens of the text to calibrate on.", least=512)
    until: float = option(
        UNTIL,
        f"Stop measuring when the mean is known to within this share (default: {UNTIL}); 0: read the whole text.",
        least=0,
        most=1,
    )
    threads: int = option(0, "Compute threads; default: the physical cores.", least=1)  # 0: as many as help

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSettings(EncodingSettings):
    """What `freehold quantize` makes. One of `quant`, `bits` and `target_bytes`, or none for four bits."""

    bits: int = option(
        0, "Bits per weight: 2 and 3 in Freehold's own types, 4 as Q4_K_M, the default.", least=2, most=4
    )
    quant: str = option("", "llama.cpp's name of a type: Q4_K_M, Q8_0, IQ4_XS, ...", metavar="TYPE")
    target_bytes: int = option(
        0, "Mix types for the least divergence in a file of at most this size, such as 1.2GB.", form="size"
    )
    portable: bool = option(False, "With --target-bytes: only types that llama.cpp reads.")
    calibrate: str = option(
        "",
        "Text of typical inputs, or `default`; without it, 2 and 3 bits use the default text.",
        metavar="FILE",
    )
    report: bool = option(False, "Measure how much the result differs from MODEL, and both speeds.")
    text: Path | None = option(None, "Text that --report reads; default: the package's.", form="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """How an adapter is trained. Every field is in the receipt."""

    rate: float = option(2e-4, "Learning rate.", name="lr", above=0, most=1)
    rank: int = option(16, "Rank of the adapter.", least=1, most=512)
    alpha: float = 32.0
    seed: int = option(0, "Seed of all draws.", least=0, most=MAX_SEED)
    threads: int | None = option(None, "Compute threads; default: the physical cores.", least=1)
    half: bool = option(False, f"{_BFLOAT16}, and the default there.")

    def __post_init__(self) -> None:
        check(self)

    def trainee(self, model: Path, memory: int | None = None, beneath: Beneath | None = None) -> Trainee:
        """Bind a model with new pairs. `memory`: of activations, in bytes. Raises what Trainee.open raises.

        `beneath`: an adapter to start from.
        """
        from freehold.adapt.training.trainee import ACTIVATIONS, Trainee

        return Trainee.open(
            model,
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            threads=self.threads,
            half=self.half,
            memory=ACTIVATIONS if memory is None else memory,
            beneath=beneath,
        )

    def optimizer(self, trainee: Trainee, steps: int) -> Optimizer:
        """Make an optimizer whose rate grows over the first tenth of `steps` and then falls to zero."""
        from freehold.adapt.training.steps import Optimizer

        warmup = max(1, round(WARMUP * steps))
        return Optimizer(trainee.parameters(), self.rate, warmup=warmup, total=steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignSettings(AdapterSettings):
    """How to align. Every field is in the receipt."""

    beta: float = option(0.1, "Weight of the margin; a smaller one lets the model move further.", above=0)
    nll: float = option(0.1, "Weight of the likelihood of chosen answers; 0 is plain DPO.", least=0)
    smoothing: float = option(
        0.0, "Share of pairs assumed to be labelled the wrong way round.", least=0, below=0.5
    )
    epochs: int = option(1, "Passes over the pairs.", least=1, most=100)
    batch: int = option(8, "Pairs per step.", least=1, most=256)
    replay: int = option(2, f"{_REPLAY}.", least=0, most=64)
    replay_weight: float = option(
        1.0, "Weight of the divergence on these rows relative to the loss.", least=0
    )
    test_share: float = option(
        0.1, "Share of prompts set aside for the test, without --test.", least=0, most=0.9
    )
    max_length: int = option(1024, "Maximum tokens of a prompt and its answer together.", least=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(AdapterSettings):
    """How to teach. Every field is in the receipt."""

    rate: float = option(1e-3, "Learning rate.", name="lr", above=0, most=1)
    epochs: int = option(1, "Passes over --data.", least=1, most=100)
    batch: int = option(8, "Answers per step.", least=1, most=256)
    replay: int = option(2, f"{_REPLAY}; 0: none.", least=0, most=64)
    replay_weight: float = option(
        1.0, "Weight of the divergence on these rows relative to the loss.", least=0
    )
    max_length: int = option(1024, "Maximum tokens of a prompt and its answer together.", least=8)
    skip_long: bool = option(False, "Skip longer examples and print how many; nothing is truncated.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings(AdapterSettings):
    """How to distil. Every field is in the receipt."""

    on_policy: bool = option(
        False, "Let MODEL answer and TEACHER judge each token; both must have the same tokenizer."
    )
    tries: int = option(
        2,
        "Maximum attempts of TEACHER per prompt until an answer passes; the first is greedy.",
        least=1,
        most=16,
    )
    max_tokens: int = option(256, "Tokens of an answer.", least=1)
    max_length: int = option(1024, "Maximum tokens of a prompt and its answer together.", least=8)
    epochs: int = option(2, "Passes over the prompts.", least=1, most=100)
    batch: int = option(8, "Prompts per step.", least=1, most=256)
    replay: int = option(2, f"{_REPLAY}; not with --on-policy.", least=0, most=64)
    replay_weight: float = 1.0
    test_share: float = option(
        0.1,
        "Share of prompts set aside for the test, if they have checks and there is no --test.",
        least=0,
        most=0.9,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceSettings(AdapterSettings):
    """How to reinforce. Every field is in the receipt."""

    steps: int = option(help="Steps to train.", least=1)
    prompts: int = option(8, "Prompts per step.", name="batch", least=1, most=256)
    group: int = option(8, "Answers to each prompt.", least=2, most=64)
    max_tokens: int = option(64, "Tokens of an answer.", least=1)
    loss: Loss = option("dr_grpo", "How advantages and tokens are normalised.", choices=get_args(Loss))
    rate: float = option(
        1e-4, "Learning rate; 0 trains nothing, for a control run.", name="lr", least=0, most=1
    )
    replay: int = option(0, f"{_REPLAY}; 0: none.", least=0, most=64)
    replay_weight: float = option(
        1.0, "Weight of the divergence on these rows relative to the loss.", least=0
    )
    updates: int = option(
        1, "Updates from one step's answers; all but the first are clipped.", least=1, most=8
    )
    cap: float = option(
        CAP, "Maximum weight of a token (trainer over sampler); 0: every token has weight 1.", least=0
    )
    most_mismatch: float = option(
        MOST_MISMATCH,
        "Stop if trainer and sampler are further apart than this, in nats per token.",
        above=0,
    )
    unseen: int = option(100, "Prompts to measure with.", least=0, most=2000)
    passes_at: float = option(1.0, "The score from which an answer passes.", name="pass-at", above=0, most=1)
    shots: int = option(0, "Solved prompts shown before each, as turns of the chat.", least=0, most=32)
    system: str = option("", "A system message before every prompt.")
    allow_gameable: bool = option(False, "Train even if the verifier rewards useless answers.")
    half: bool = option(False, f"{_BFLOAT16}, but moves trainer and sampler further apart.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseSettings(EncodingSettings):
    """How adapters become part of a model's weights."""

    quant: str = option(
        "",
        "Type of the result: Q8_0, Q4_K_M, T3, ...; default: MODEL's own, and Q8_0 for changed matrices of less.",
        metavar="TYPE",
    )
    bound: float = option(
        0.0,
        "Keep the result only if it differs from MODEL+ADAPTER by at most this, in nats per token; "
        "default: by its bits, 0.1 from four on, 0.3 for three, 1 for two.",
        least=0,
        shown=False,
    )
    calibrate: str = option(
        "",
        "Text of typical inputs, or `default`; default: what MODEL itself was calibrated on, if that is known.",
        metavar="FILE",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherSettings:
    """How texts become data. `since`: seconds since 1970; `apart`: files whose items are not trained on."""

    personal: Personal = option(
        "leave-out",
        "Texts in which personal data or credentials are found: leave them out, show which, or keep them.",
        choices=get_args(Personal),
    )
    test_share: float = option(0.1, "Share of conversations set aside as test items.", least=0, most=0.9)
    seed: int = option(0, "Seed of the split into data and test items.", least=0, most=MAX_SEED)
    most: int = option(0, "Take at most this many, the newest; 0: all.", least=0, most=1_000_000)
    since: float = 0.0
    apart: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check(self)
