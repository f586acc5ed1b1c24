"""Which kernel table a processor gets: flags as Linux names them, of processors that exist."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from freehold import _native as native

HASWELL = ["avx2", "fma", "f16c"]
SKYLAKE_SERVER = [*HASWELL, "avx512f", "avx512bw", "avx512dq", "avx512vl"]
CASCADE_LAKE = [*SKYLAKE_SERVER, "avx512_vnni"]
ICE_LAKE_SERVER = [*CASCADE_LAKE, "avx512vbmi", "avx512_vbmi2"]
TILES = ["amx_tile", "amx_int8", "amx_bf16"]

BEST = {
    "Sandy Bridge": (["f16c"], "scalar"),
    "Haswell, and every Zen before the fourth": (HASWELL, "avx2"),
    "Alder Lake, with fast and slow cores": ([*HASWELL, "avx_vnni"], "avxvnni"),
    "Skylake server, whose AVX-512 has no byte dots": (SKYLAKE_SERVER, "avx2"),
    "Cascade Lake, whose AVX-512 permutes no bytes": (CASCADE_LAKE, "avx512"),
    "Ice Lake server and Zen 4": (ICE_LAKE_SERVER, "vbmi"),
    "Zen 5, which has avx_vnni too": ([*ICE_LAKE_SERVER, "avx_vnni"], "vbmi"),
    "Sapphire Rapids": ([*ICE_LAKE_SERVER, "avx_vnni", *TILES], "amx"),
    "a guest of it whose tiles lack BF16": ([*ICE_LAKE_SERVER, "avx_vnni", "amx_tile", "amx_int8"], "vbmi"),
    "a guest that hides VBMI and shows tiles": ([*CASCADE_LAKE, *TILES], "avx512"),
    "one that hides FMA": (["avx2", "f16c", "avx_vnni"], "scalar"),
    "Cortex-A72": (["asimd"], "scalar"),
    "Cortex-A76": (["asimd", "asimddp"], "neon"),
    "Neoverse V1": (["asimd", "asimddp", "i8mm"], "i8mm"),
}


@pytest.mark.parametrize("processor", BEST)
def test_a_processor_gets_the_widest_table_it_can_run(processor):
    flags, best = BEST[processor]
    assert native.tables_for(flags)[0] == best


def test_what_runs_a_table_runs_those_below_it():
    everything = native.tables_for([*ICE_LAKE_SERVER, "avx_vnni", *TILES])
    assert everything == ["amx", "vbmi", "avx512", "avxvnni", "avx2", "scalar"]
    assert set(native.isas()) <= set(everything)


@pytest.mark.parametrize("isa", native.isas())
def test_a_table_can_be_named(isa):
    command = [sys.executable, "-c", "from freehold import _native; print(_native.isa())"]
    done = subprocess.run(command, env=os.environ | {"FREEHOLD_ISA": isa}, capture_output=True, text=True)
    assert done.stdout.split() == [isa], done.stderr
