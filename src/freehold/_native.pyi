"""The native module: packed matrices, the KV cache, traced plans, sampling, and the machine's ceilings.

Arrays are C-contiguous NumPy arrays of the dtype named; a wrong dtype or shape is a TypeError or UsageError.
Every call that computes drops the GIL. See csrc/freehold.h for who owns what.

WIDE_UNIT: inputs of wide codes that share a scale. BLOCK_TOKENS: positions in a page of the KV cache.
LAYOUT: version of the panels' layout; packed files are keyed by it.
REVISION: SHA-256 over the native sources, and the compiler; what is cached across restarts is keyed by it.
testing: single kernels by the name of their table, for tests/csrc; wheels are without it.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy
from numpy.typing import NDArray

F32 = NDArray[numpy.float32]
I32 = NDArray[numpy.int32]
U8 = NDArray[numpy.uint8]

testing: ModuleType

BLOCK_TOKENS: int = 32

LAYOUT: int = 5

WIDE_UNIT: int = 128

REVISION: str = ...

def isas() -> list[str]:
    """Name the kernel tables this machine can run, best first."""

def tables_for(flags: Sequence[str]) -> list[str]:
    """Name the kernel tables a processor with these flags, as in /proc/cpuinfo, can run, best first."""

def isa() -> str:
    """Name the table in use (the best, or FREEHOLD_ISA's choice)."""

def type_routes() -> list[tuple[str, str, str, float, float]]:
    """List (GGUF type, weight type, route, bits a weight in the file, bits packed) for every type that packs."""

def measure_read_gb_s(threads: int, megabytes: int = 512) -> float:
    """Measure plain read bandwidth in GB/s (1e9)."""

def measure_int8_gops(threads: int, tiles: bool = False) -> float:
    """Measure int8 multiply-add operations in 1e9/s, without memory traffic, on the ISA in use.

    Of vector dots, or with `tiles` of the matrix unit that prompts use (AMX): 0.0 where there is none.
    """

def map_file(fd: int, huge: bool = False) -> U8:
    """Map a regular file read-only, as long as any view of the array lives; `huge`: in huge pages.

    What is lost meanwhile (the file is cut short, the disk fails) reads as zeros instead of killing the process:
    ask `is_lost` after reading. Raises BadModelFile, CapacityExceeded.
    """

def is_lost(array: U8) -> bool:
    """Tell whether any part of the mapping that the array begins in was lost; False for other arrays."""

def checksum(array: U8) -> int:
    """Return the XXH64 of the bytes, without holding the GIL."""

def prefault(array: U8) -> None:
    """Map all pages of a memory-mapped array, in order, without holding the GIL; a hint."""

class Threads:
    """A pool of n threads, the caller being one. Keep it alive as long as anything computes with it."""

    def __init__(self, n: int) -> None: ...
    @property
    def size(self) -> int: ...

class Matrix:
    """A weight matrix [rows, cols] re-laid into panels. Immutable."""

    @staticmethod
    def pack(raw: U8, type: str, rows: int, cols: int, threads: Threads, head: bool = False) -> Matrix:
        """Re-lay `rows` GGUF rows of `type` ("Q4_K", "F32", ...); raw holds exactly those bytes, 1-D.

        A `head` of type Q8_0, Q6_K or Q3_K goes into two planes, so that choices can be screened (see Plan.run).
        """

    @staticmethod
    def pack_trellis(raw: U8, type: str, rows: int, cols: int, threads: Threads, expand: bool) -> Matrix:
        """Re-lay a tensor of "T2" or "T3", its table first, as it is or expanded to int8.

        `pack` chooses by the kernels in use.
        """

    @staticmethod
    def pack_codes(codes: NDArray[numpy.int8], scales: F32, threads: Threads) -> Matrix:
        """Lay codes int8 [N, K] with scales float32 [N, K/16] (value = scale * code); K a multiple of 32."""

    @staticmethod
    def pack_wide(values: F32, threads: Threads) -> Matrix:
        """Round float32 [N, K] to int16 codes with a scale for each row's 128 inputs; K a multiple of WIDE_UNIT."""

    @staticmethod
    def view(panels: U8, weight_type: str, rows: int, cols: int, paged: bool = False) -> Matrix:
        """Use panels that lie in an array (a mapped packed file): 64-byte aligned, exactly as long as needed.

        `paged`: memory does not hold the file; the panels of a mixture's chosen experts are asked for ahead.
        """

    def panels(self) -> U8:
        """Show the panels' bytes, read-only, without a copy."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def weight_type(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def row(self, index: int) -> F32:
        """Decode one row to float32 [K]."""

def quantize_rows(
    values: F32, type: str, threads: Threads, importance: F32 | None = None, isa: str = ""
) -> U8:
    """Round float32 [N, K] to rows of a GGUF weight type's blocks, as ggml does: uint8 [N, row bytes].

    `importance` [K]: how much each column's squared error counts. `isa`: the kernels, for tests; the bytes are
    the same. Raises UsageError for another type or a K that its blocks do not divide, BadModelFile for what a
    type cannot hold.
    """

def unpacks(type: str) -> bool:
    """Tell whether `unpack` takes this GGUF type."""

def unpack(raw: U8, type: str, out: F32, threads: Threads) -> None:
    """Decode GGUF rows of `type` into `out`, float32 [N, K]; raw: exactly their bytes, after the table of T2, T3."""

def unpack_half(raw: U8, type: str, out: NDArray[numpy.uint16], threads: Threads) -> None:
    """Decode as `unpack` does, into the bits of bfloat16, rounded to nearest even."""

class Adapter:
    """Low-rank changes of weight matrices, for rows of a step that ask for them. Fill it before any step has it."""

    def __init__(self) -> None: ...
    def add(self, weight: Matrix, a: Matrix, b: Matrix, scale: float) -> None:
        """Let W · x become W · x + scale * B · (A · x): A [rank, K], B [N, rank], floats, rank a multiple of 16."""

    @property
    def nbytes(self) -> int:
        """Bytes of all A and B."""

class Rope:
    """Rotary embedding: angle = position * inv_freq[i], cos and sin times `factor`; pairs adjacent or halves.

    `axes` uint8 [pairs]: which number of a row's place (0 time, 1 row, 2 column) turns each pair, in steps
    that have places.
    """

    def __init__(
        self, inv_freq: F32, factor: float = 1.0, adjacent: bool = False, axes: U8 | None = None
    ) -> None: ...

class KvCache:
    """Pages of keys and values for all layers, "f16", "f32" or "q8"; layers are (kv_heads, key width, value width).

    With `window_blocks`, layers whose entry in `windows` is not 0 lie in a pool of that many blocks of their own.
    With `slots`, layers whose entry in `states`, (convolution inputs, state floats), is not (0, 0) have a
    float32 state in each slot.
    A layer of (0, 0, 0) keeps no keys and values.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        blocks: int,
        kv_type: str = "f16",
        windows: Sequence[int] = [],
        window_blocks: int = 0,
        states: Sequence[tuple[int, int]] = [],
        slots: int = 0,
    ) -> None: ...
    @property
    def blocks(self) -> int: ...
    @property
    def window_blocks(self) -> int: ...
    def copy(self, pairs: Sequence[tuple[int, int]], window_blocks: Sequence[tuple[int, int]] = []) -> None:
        """Copy blocks, and window blocks, each (from, to) after the one before it."""

    def read_block(self, block: int, window_block: int = -1) -> U8:
        """Return a block's bytes: the layers' pages in a row, then those in its window block."""

    def write_block(self, block: int, bytes: U8, window_block: int = -1) -> None:
        """Fill a block with what read_block gave."""

    def read_state(self, slot: int) -> U8:
        """Return a slot's bytes: the layers' states in a row, of each its inputs, then its state."""

    def write_state(self, slot: int, bytes: U8) -> None:
        """Fill a slot with what read_state gave."""

    @property
    def slots(self) -> int: ...
    @property
    def bytes_per_slot(self) -> int:
        """0 without recurrent layers."""

    @property
    def bytes_per_window_block(self) -> int:
        """0 without a sliding-window pool."""

    @property
    def bytes_per_block(self) -> int: ...

class Plan:
    """A traced forward pass. Build it once with the op methods, `finish`, then `run` steps.

    Op methods take and return buffer numbers: float32 activations [rows of the step, width].
    `rounds`: products, and attention both ways, may round to bfloat16 where that is faster.
    """

    def __init__(
        self, threads: Threads, cache: KvCache | None, max_rows: int, rounds: bool = False
    ) -> None: ...
    def add(self, x: int, y: int, at: int = -1) -> None:
        """x += y in place, as wide as each other; with `at`: y to every part of x as wide as y, from `at` on."""

    def add_features(self, x: int, at: int) -> None:
        """Add the features' columns from `at` on, as many as x has, to rows of pictures, in place."""

    def add_norm(self, residual: int, x: int, weight: F32, eps: float) -> None:
        """residual += norm(x), in place."""

    def attend_both(
        self, q: int, k: int, v: int, heads: int, scale: float, first: int = 0, count: int = 0, into: int = -1
    ) -> int:
        """Attention of each row over all rows of its sequence in this step; heads of 16 columns or more.

        `first`, `count`: some of the heads (0: all from `first` on); their columns of `into` are written, or a buffer.
        """

    def attend_near(
        self, q: int, k: int, v: int, heads: int, back: F32, scale: F32, softcap: float = 0.0
    ) -> int:
        """Attention of each row over itself and the rows just before it, of its sequence and of this step.

        Scores are q times `scale` (of each column of a head) times (key + `back`), whose row is the distance: float32
        [window * heads * columns], that of the row itself first. `softcap` > 0: softcap * tanh(score / softcap).
        """

    def attention(
        self,
        layer: int,
        q: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
        both: bool = False,
        until: int = 0,
    ) -> int:
        """Causal attention of q over the layer's pages; window w > 0: keys j with i - w < j <= i; chunk c > 0: those of
        i's own chunk, j / c = i / c. `sinks`: a logit for each head that joins the softmax's sum and has no value.
        `both`: rows of a picture see each other, where the step has `ends`. `until` > 0: keys j < until, for rows at
        that position and beyond.
        """

    def clamp(self, x: int, limit: float, low: float | None = None) -> None:
        """Limit every value to [low, limit], in place; `low` is -limit unless given."""

    def conv_near(self, x: int, weight: F32) -> int:
        """The sum of each channel's last inputs times its weights, within its sequence and this step: causal.

        `weight` is float32 [channels * taps], of a channel its oldest input's first.
        """

    def correct(
        self, x: int, made: int, router: F32, norm: F32, coefs: F32, scale: F32, active: int, eps: float
    ) -> int:
        """Move every stream of a row in place by what a layer made of the active one; return that one times `scale`.

        router: [streams, width], norm and scale: [width], coefs: [streams, streams], flat.
        """

    def embed(self, table: Matrix, scale: float = 1.0, beyond: int = -1, shown: int = -1) -> int:
        """x = table[token] * scale.

        `beyond`: the row of tokens after the table's last; -1: they are refused.
        Rows of pictures are those of the step's features, unscaled; with `shown` that row of the table.
        """

    def embed_sum(self, words: Matrix, positions: Matrix, kinds: Matrix | None = None, start: int = 0) -> int:
        """x = words[token] + positions[position - start] + kinds[0], if there are kinds."""

    def experts(
        self,
        x: int,
        routes: int,
        gate: Matrix | None,
        up: Matrix,
        down: Matrix,
        residual: int | None,
        *,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        gate_bias: F32 | None = None,
        up_bias: F32 | None = None,
        down_bias: F32 | None = None,
        limit: float = 0.0,
        alpha: float = 1.0,
        weigh_input: bool = False,
    ) -> int:
        """residual += weight * down(act(gate · n) * (up · n)) for each of a row's experts, by ascending id.

        n = norm(x) or x. gate and up: [experts * intermediate, width of x], down: [experts * width of residual,
        intermediate], both sizes multiples of 16; a bias has a value for each row of its matrix. Returns residual, or
        without one a buffer of the sum. act: "silu" (with a `limit` as in gated()), "gelu", "clamped" (gpt-oss's, by
        `limit` and `alpha`), or "relu2" without a gate. `weigh_input`: weights multiply n instead. A step with an
        adapter for a matrix is refused.
        """

    def features(self, width: int, at: int = 0) -> int:
        """The features' columns [at, at + width) of every row, for a plan over features instead of tokens."""

    def gate_heads(self, y: int, gate: int, *, act: str) -> None:
        """y *= act(gate) in place, the gate a column for each head of y.

        act: sigmoid or softplus.
        """

    def gate_norm(self, y: int, z: int, weight: F32 | None, eps: float = 0.0, groups: int = 1) -> None:
        """y = norm(y * silu(z)) in place, an RMS norm of each group; without a weight the gate alone."""

    def gated(
        self,
        x: int,
        gate: Matrix,
        up: Matrix,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        limit: float = 0.0,
    ) -> int:
        """act(gate · n) * (up · n) with n = norm(x) or x; act is "silu" or "gelu" (tanh form).

        `limit` > 0: min(silu(gate · n), limit) * clamp(up · n, -limit, limit).
        """

    def gated_delta(
        self,
        layer: int,
        qkv: Sequence[int],
        decay: int,
        beta: int,
        a: F32,
        bias: F32,
        *,
        key_heads: int,
        keys: int,
        tiled: bool = False,
        beta_scale: float = 1.0,
        bound: float = 0.0,
    ) -> int:
        """The gated delta rule; qkv: q of all key heads, k, v of all value heads, in one buffer or three.

        g = exp(a * softplus(decay + bias)), with a `bound` below 0 exp(bound * sigmoid(a * (decay + bias)));
        b = beta_scale * sigmoid(beta); q, k of unit length, q times keys ** -0.5.
        S = g S, d = b (v - S' k), S = S + k d', o = S' q. decay: [heads], or [heads * keys] for a g of each key.
        Value head j reads key head j % key_heads if `tiled`, else j / (heads / key_heads).
        The layer's state is [heads][blocks of 16 columns][keys][16]. decay and beta are overwritten.
        """

    def gaussian_gate(self, gate: int, up: int, above: float) -> None:
        """gate = gelu(max(gate - cut, 0)) * up in place (tanh form).

        cut: mean + above * deviation of a row's gates.
        """

    def gelu(self, x: int) -> None:
        """GELU of every value in its exact form, in place."""

    def hidden(self, x: int, beside: Sequence[int] = []) -> None:
        """The rows a step asks for, as they are, `beside` after them. The last op of a plan without a cache."""

    def index_store(
        self, layer: int, q: int, k: int, weight: F32, bias: F32, eps: float, rope: Rope, adjacent: bool
    ) -> None:
        """Normalise an index's key k, rotate the beginning of it and of q's heads, and write it into its pages.

        layer: the index's own in the cache, one key head. adjacent: whether adjacent pairs turn, else halves.
        """

    def join(self, x: int, y: int) -> int:
        """Rows of x and y side by side."""

    def latent_attention(self, layer: int, q: int, latent: int, scale: float) -> int:
        """Causal attention of absorbed queries over the layer's latents; returns [heads, latent]."""

    def latent_store(
        self,
        layer: int,
        q: int,
        absorbed: int,
        kv: int,
        norm: F32,
        eps: float,
        rope: Rope | None,
        rows: bool = False,
    ) -> None:
        """Normalise kv's latent, rotate the rest of it and of q's heads, and write [latent | key] into its pages.

        absorbed: [heads, latent + rotated], as linear_heads() leaves it: q's rotated parts go into its room.
        rope None: nothing turns. rows: a token's values lie in a row, for picked_attention().
        """

    def layer_norm(self, x: int, weight: F32, bias: F32, eps: float) -> None:
        """Layer norm of every row, in place."""

    def layer_normed(self, x: int, weight: F32 | None, bias: F32 | None, eps: float, group: int = 0) -> int:
        """Layer norm of every row, or of every `group` inputs of it, in a new buffer; weight and bias may be None."""

    def linear(
        self,
        x: int,
        weights: Sequence[Matrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[int]:
        """One output per weight: W · (norm(x) or x) + bias. One quantisation of x serves all."""

    def linear_act(
        self,
        x: int,
        weight: Matrix,
        act: str,
        bias: F32 | None = None,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> int:
        """act(W · n + bias), n = norm(x) or x; act: "gelu" (tanh), "gelu_erf", "gelu_quick", "relu" or "relu2"."""

    def linear_add(
        self,
        x: int,
        weight: Matrix,
        residual: int,
        bias: F32 | None = None,
        gate: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """residual += scale * (W · x + bias), in place.

        `gate`: a buffer [rows, 1]; sigmoid(gate) multiplies W · x. Takes no bias.
        """

    def linear_heads(self, x: int, weight: Matrix, heads: int, room: int = 0) -> int:
        """A product for each head: its rows of W times the first inputs of its part of x.

        weight: [heads * outputs, inputs]; x: [heads, inputs or more].
        Returns [heads, outputs + room], whose room is not written.
        """

    def logits(
        self,
        x: int,
        weight: Matrix,
        norm: F32 | None,
        eps: float = 0.0,
        scale: float = 1.0,
        softcap: float = 0.0,
        bias: F32 | None = None,
    ) -> None:
        """Output head over the rows a step asks for. The last op of a plan.

        The softcap of scale * (W · n + bias), n = norm(x) or x.
        """

    def merge(self, x: int, others: int, least: float) -> int:
        """The mean of the first stream of x and of parts of `others`, each scaled to its root mean square.

        `least`: of the mean square of a part.
        """

    def multiply(self, x: int, y: int, at: int = 0) -> None:
        """x *= the part of y that begins at `at`, in place."""

    def norm(self, x: int, weight: F32, eps: float) -> int:
        """RMS norm of every row, or of every part of it as wide as the weight, such as a head."""

    def norm_gate(self, y: int, gate: int, weight: F32 | None, eps: float = 0.0, *, act: str) -> None:
        """y = norm(y) * act(gate) in place, a norm of heads as wide as the weight, or none.

        act: silu, sigmoid or gelu (tanh form).
        """

    def part(self, x: int, at: int, width: int) -> int:
        """A copy of `width` inputs of every row, from `at` on."""

    def pick(self, layer: int, q: int, weights: int, top_k: int) -> int:
        """Choose the top_k tokens that a row attends to, by the sum over heads of weights * max(0, q . key).

        layer: the index's own in the cache. Of equal scores the lower position; all tokens up to the row where they
        are no more.
        """

    def picked_attention(self, layer: int, q: int, picks: int, latent: int, scale: float) -> int:
        """Attention of absorbed queries over the latents that pick() chose, kept in rows; returns [heads, latent]."""

    def predict(self, x: int, router: F32, norm: F32, coefs: F32, active: int, eps: float) -> int:
        """Mix the streams of every row in place by coefficients of its active one; return that one of the result.

        router: [streams, width], norm: [width], coefs: [streams * streams, streams], flat.
        """

    def rope_store(
        self,
        layer: int,
        q: int,
        k: int,
        v: int,
        rope: Rope | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None:
        """Normalise (per head) and rotate q in place and k, then write k and v into the layer's pages."""

    def rotate(self, x: int, rope: Rope, width: int) -> None:
        """Rotate the heads of every row by its position, in place."""

    def route(
        self,
        x: int,
        router: Matrix,
        top_k: int,
        *,
        norm: F32 | None = None,
        eps: float = 0.0,
        renormalise: bool,
        scoring: str = "softmax",
        bias: F32 | None = None,
        correction: F32 | None = None,
        groups: int = 1,
        kept: int = 1,
        group_score: str = "best",
        epsilon: float = 0.0,
        least: float = 0.0,
        scale: float = 1.0,
        jitter: float = 0.0,
        corrects_logits: bool = False,
    ) -> int:
        """Scores router · (norm(x) or x) + bias; returns each row's top_k experts and their weights, for experts().

        router: [experts, width], of a float type. Of equal scores the lowest id is chosen, of equal groups the lowest.
        scoring: "softmax" over all experts, "sigmoid" of each, or "sparsemixer" (two masked softmaxes, `jitter`).
        `correction` joins a score where experts are compared, and no weight; with `corrects_logits` logits are compared
        instead, and it joins those. Only the `kept` best of `groups` are
        chosen from: a group's score is its "best" or the sum of its "top2". `renormalise` divides the weights by
        max(their sum + epsilon, least); `scale` multiplies them.
        """

    def scale(self, x: int, factor: float) -> None:
        """x *= factor, in place."""

    def selective_scan(self, layer: int, x: int, dt: int, b: int, c: int, a: F32, d: F32, bias: F32) -> int:
        """Mamba-1's recurrence; x and dt are [channels], b and c [states], a [states][channels].

        step = softplus(dt + bias), h = exp(step * a) * h + step * x b', y = h c + d x, for each channel; returns y.
        The layer's state is [states][channels]; channels are a multiple of 16.
        """

    def short_conv(
        self,
        layer: int,
        x: int,
        weight: F32,
        bias: F32 | None = None,
        act: str = "none",
        gate_in: int | None = None,
        gate_out: int | None = None,
        at: int = 0,
    ) -> int:
        """gate_out * act(bias + sum of each channel's last inputs gate_in * x times its weights), causal.

        The layer's state keeps the inputs that the next tokens need, from float `at` of its convolution's on.
        `weight` is float32 [channels * taps], of a channel its oldest input's first; act is "none" or "silu".
        """

    def spread(self, x: int, others: int, least: float) -> int:
        """Streams: x, then parts of `others` as wide as x, each scaled to the root mean square of x.

        `least`: of the mean square of a part.
        """

    def ssm_scan(
        self, layer: int, x: int, dt: int, a: F32, d: F32, bias: F32, groups: int, states: int
    ) -> int:
        """Mamba-2's recurrence; x is [heads * head_dim | groups * states of B | the same of C], dt [heads].

        step = softplus(dt + bias), h = exp(step * a) * h + step * x B', y = h C + d x; returns y [heads * head_dim].
        The layer's state is [heads][states][head_dim]; head_dim is a multiple of 16.
        """

    def temper(self, x: int, beta: float, original: int, shift: int = 0) -> None:
        """x *= 1 + beta * ln(1 + floor((position + shift) / original)), in place."""

    def weigh(self, routes: int, scale: F32) -> None:
        """Multiply the weights that route() returned by those of the chosen experts, in place."""

    def xielu(self, x: int, positive: float, negative: float, beta: float, eps: float) -> None:
        """xIELU of every value, in place.

        Above 0 it is positive * x^2 + beta * x, else negative * (exp(min(x, eps)) - 1 - x) + beta * x.
        Source: arXiv 2411.13010.
        """

    @property
    def hidden_width(self) -> int:
        """Width of the rows `run` gives as hidden."""

    def section(self) -> None:
        """Let a run pause here, in a plan without a cache: see `run` and its `section`."""

    @property
    def sections(self) -> int:
        """How many parts `section` made of it."""

    def finish(self) -> None:
        """Check the trace and allocate activation buffers."""

    def watch(self) -> None:
        """Count from now on, and from zero, the calling thread's processor time in each op of `run`."""

    def spent(self) -> list[tuple[str, float]]:
        """Each op's name and the seconds counted, in the plan's order; empty before `watch`."""

    def run(
        self,
        tokens: I32,
        positions: I32,
        seqs: I32,
        block_tables: I32,
        logit_rows: I32,
        choices: Sequence[tuple[int, float, int, int]] = [],
        tokens_end: int = 0,
        adapters: Sequence[Adapter] = [],
        row_adapters: I32 | None = None,
        hidden_rows: I32 | None = None,
        hidden: F32 | None = None,
        window_tables: I32 | None = None,
        pieces: I32 | None = None,
        features: F32 | None = None,
        feature_rows: I32 | None = None,
        places: I32 | None = None,
        ends: I32 | None = None,
        section: int = -1,
        begin: int = 0,
        end: int = 0,
    ) -> tuple[F32, NDArray[numpy.int64]]:
        """Run one step: tokens, positions, seqs int32 [rows]; block_tables int32 [sequences, width];
        logit_rows int32 [R]; choices (row, temperature, seed, position), for rows of which only the token is
        wanted that `sample` would choose among ids below `tokens_end` with every filter off. Return float32
        logits [R, vocab] and the chosen ids (-1 where `sample` gives -1). Rows of one sequence are consecutive
        positions. A step without logit_rows screens: it need not read the whole of a head in two planes.
        `row_adapters` int32 [rows]: which of `adapters` each row is computed with, -1 for none.
        `hidden` float32 [H, hidden_width] is filled with what the head would read of `hidden_rows` int32 [H].
        `window_tables`: as block_tables, for a cache with a sliding-window pool; read where a row of the step looks.
        `pieces` int32 [pieces, 5], for a cache with slots: sequence, first position, end, slot read (-1: zeros, at 0),
        slot written; they cover the rows of each sequence in order.
        `features` float32 [F, width]: rows of pictures, `feature_rows` int32 [rows]: which of them each row is,
        -1 for a token's.
        `places` int32 [rows, 3]: time, row and column of each row, for ropes with axes. `ends` int32 [rows]:
        where layers of attention both ways stop looking, beyond a row's own position. `section`: that part of
        the plan alone, of those that `Plan.section` made, in order; `begin`, `end`: those rows of it (end 0: to the
        last), one cut after another. No bit depends on cuts.
        """

def sample(
    logits: F32,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    seed: int,
    position: int,
) -> int:
    """Choose a token from float32 logits [V] (penalties and bias applied already). -1 if any logit is not finite.

    Order: temperature, top-k, typical, top-p, min-p; then the greatest logit/temperature + Gumbel(seed, position, id)
    among the survivors. Temperature 0: the greatest logit, lowest id on ties.
    """

def log_sum_exp(logits: F32) -> float:
    """log(sum(exp(logits))); NaN when any logit is not finite."""

def penalize(
    logits: F32, ids: I32, counts: I32, repetition: float, presence: float, frequency: float
) -> None:
    """In place, for each id seen `counts` times: divide by repetition (multiply, if negative); subtract the rest."""

class Strings(Sequence[str]):
    """A long list of strings as bytes: a vocabulary, or its merges. Immutable."""

    def __init__(self, texts: Sequence[str]) -> None: ...
    @staticmethod
    def read(data: U8, at: int, count: int) -> Strings:
        """Copy `count` strings, each a u64 length and its UTF-8 bytes; raises BadModelFile naming the string."""

    @property
    def file_bytes(self) -> int:
        """Bytes that `read` went over."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> str: ...  # type: ignore[override]
    def index(self, text: str) -> int:  # type: ignore[override]
        """Return the first place of `text`; raises ValueError. Looks at all of them: some tenths of a millisecond."""

class Bpe:
    """Byte-pair encoding over a vocabulary: the pair of best rank merges first, the leftmost of equals."""

    def __init__(
        self,
        tokens: Strings,
        reachable: U8,
        byte_level: bool,
        ignore_merges: bool = False,
        byte_fallback: bool = False,
        unk: int = -1,
    ) -> None:
        """`reachable`: for each id, whether ordinary text may become it."""

    def merge_by_lines(self, lines: Strings) -> int:
        """Take merges "left right", best first; return the first line that joins no two tokens, or -1."""

    def merge_by_rank(self, rank: I32) -> None:
        """Let any two tokens merge whose union is a token, the lowest rank first; `rank` by id."""

    def encode(self, text: bytes, words: Sequence[int | None]) -> list[int]:
        """Encode words given as UTF-8; `words` numbers the word of each byte.

        Its type is the tokenizers package's; None is a TypeError.
        """

    def find(self, token: str) -> int:
        """Return the id of a token that ordinary text may become, or -1."""

def trellis_encode(
    weights: F32,
    importance: F32,
    feedback: F32 | None,
    table: NDArray[numpy.int8],
    unit: float,
    bits: int,
    threads: Threads,
    block: int = 8,
    ahead: int = 16,
    spread: int = 2,
) -> tuple[U8, F32]:
    """Encode finite float32 [N, K] as rows of T2 or T3: uint8 [N, row bytes], and float32 [N, K] that they stand for.

    `importance` [K] weighs a column's squared error; `feedback` [K, width] is what an error of column i adds to the
    target of column i // width * width + j. `unit` is the first scale tried for a group of root mean square 1, with
    `spread` more on each side. Columns are committed `block` at a time with `ahead` more in view.
    Threads change no byte.
    """

def has_bf16_products(isa: str = "") -> bool:
    """Whether bf16_product and add_bf16_moments run by this table of kernels; empty: the machine's."""

def bf16_product(x: F32, w: F32, isa: str = "") -> F32:
    """Multiply float32 x [M, K] by w [N, K], both rounded to bfloat16: float32 [M, N], sums in float32. One thread."""

def add_bf16_moments(x: F32, first: int, moments: F32, isa: str = "") -> None:
    """Add x^T x to float32 moments [W, W], of columns first to first + W of x [T, K] rounded to bfloat16. One thread.

    The diagonal and what is below it are right; above it some are.
    """

class FlacFile:
    """A FLAC file that is decoded frame by frame (RFC 9639); errors are UsageErrors that say where."""

    def __init__(self, data: bytes) -> None:
        """Read the metadata."""

    @property
    def rate(self) -> int:
        """Samples a second."""

    @property
    def channels(self) -> int: ...
    @property
    def bits(self) -> int:
        """Of a sample, 4 to 32."""

    @property
    def total(self) -> int:
        """Samples of a channel as the header states; 0: it does not."""

    @property
    def md5(self) -> bytes:
        """Of all samples, as the header states; zeros: it does not."""

    def read(self, most: int) -> tuple[F32, bytes]:
        """Return the next frames: the mean of their channels from -1 to 1, and what the MD5 is of; empty at the end.

        Stops at the first frame that reaches `most` samples, at most 2^24. CRCs are checked; the MD5 is the caller's.
        """

def resampled(
    input: NDArray[numpy.float64],
    begin: int,
    first: int,
    outputs: int,
    weights: NDArray[numpy.float64],
    down: int,
) -> F32:
    """Return output samples `first` to `first + outputs`, each a sum of input times weights in the order of the input.

    `begin`: the number of the first input sample; `weights`: [up, taps]; an output step is down / up of the input's.
    """

def count_json(text: bytes) -> tuple[int, int, int, int, bool]:
    """Return how many (lists and objects, names, values, backslashes) a JSON text has, and whether it is wide.

    Punctuation inside strings does not count; backslashes do, wherever they are. Values: items of lists and objects, at
    most. Wide: a string may hold a character beyond ASCII. What is no JSON gives some numbers.
    """

def cut_json(text: bytes, begin: int, end: int, piece: int) -> list[int]:
    """Return begin and end of each piece of the list or object in text[begin:end], one after the other.

    A piece is items of less than `piece` bytes together, or one longer item. Only brackets, quotes and commas are
    looked at: pieces may be no JSON. Raises ValueError where an item is missing, the text ends early or something
    follows it.
    """
