"""Cycles a weight of ARM kernels by llvm-mca's models of processors, beside llama.cpp's kernels from the same compiler.

`python benches/engine/cycles.py --llama SOURCE [--cpu NAME]... [--type Q4_K]... [--tokens 1]...`; SOURCE is the folder
`vendor/llama.cpp` of the source package llama-cpp-python. A product of 64 rows by 2,048 inputs runs under
qemu-aarch64 and leaves the addresses it executed; llvm-mca schedules that very sequence, so loops and their ends
count as they run. Every load hits the first cache in such a model and no branch is mispredicted: the result bounds
arithmetic, not memory, and nothing was measured. LLVM schedules Cortex-A76 by its model of Cortex-A57, and Apple's by
Cyclone's.
Needs Debian's `qemu-user`, `llvm` and the package `ziglang`. The last line is JSON.
Path: cycles.py -> zig, qemu, llvm-objdump, llvm-mca
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import zig

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ROOT / "benches" / "drivers"
ROWS, INPUTS = 64, 2048  # of the drivers' products
TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0")
# What is compared on a processor: the table that Freehold chooses there, and the inputs that llama.cpp lays together.
DOT, MATRIX = ("neon", "4"), ("i8mm", "8")
CPUS = {
    "cortex-a76": DOT,
    "neoverse-n1": DOT,
    "neoverse-v1": MATRIX,
    "neoverse-v2": MATRIX,
    "apple-m1": DOT,
    "apple-m2": MATRIX,
    "apple-m4": MATRIX,
}
FEATURES = {"4": "generic+v8_2a+dotprod", "8": "generic+v8_6a+dotprod+i8mm"}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*?)(?:\s*//.*)?$")
JUMPS = re.compile(r"^(b\.\w+|bl|b|cbn?z|tbn?z|adrp?)\b(.*?)(?:0x[0-9a-f]+)?( <.*>)?$")


def tool(*names: str) -> str:
    """Return the first of these programs on the PATH, the newest under a version's suffix before the plain name."""
    for name in names:
        for each in (*(f"{name}-{version}" for version in range(25, 18, -1)), name):
            if found := shutil.which(each):
                return found
    raise SystemExit(f"error: none of {', '.join(names)} is on the PATH")


def compile_freehold(folder: Path) -> Path:
    """Compile the kernels as a wheel has them, and their driver, into one program."""
    program = folder / "freehold"
    native = ROOT / "csrc"
    kernels = [native / "kernels" / "isa" / f"{table}.cpp" for table, _ in (DOT, MATRIX)]
    flags = [
        "-std=c++20",
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-ffunction-sections",
        "-Wl,--gc-sections",
    ]
    build([*flags, f"-I{native}", DRIVERS / "cycles_freehold.cpp", *kernels], program)
    return program


def compile_llama(source: Path, wide: str, folder: Path) -> Path:
    """Compile llama.cpp's repacked kernels for what `wide` stands for, and their driver, into one program."""
    program, ggml = folder / f"llama-{wide}", source / "ggml"
    includes = [f"-I{ggml / each}" for each in ("include", "src", "src/ggml-cpu")]
    flags = [f"-mcpu={FEATURES[wide]}", "-O3", "-ffunction-sections", "-Wl,--gc-sections", "-Wno-everything"]
    build(
        [*flags, *includes, DRIVERS / "cycles_llama_cpp.cpp", ggml / "src/ggml-cpu/arch/arm/repack.cpp"],
        program,
    )
    return program


def build(arguments: list[str | Path], program: Path) -> None:
    print(f"compiling {program.name}", file=sys.stderr)
    command = [
        *zig.compiler(),
        "c++",
        "-target",
        "aarch64-linux-musl",
        "-static",
        *map(str, arguments),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, env=os.environ | zig.environment())


def instructions(program: Path) -> dict[int, str]:
    """Return a program's instructions by address; jumps and addresses of pages get a symbol as their target."""
    text = subprocess.run(
        [tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--mattr=+all", str(program)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            code = match[2].replace("\t", " ")
            jump = JUMPS.match(code)
            found[int(match[1], 16)] = f"{jump[1]} {jump[2].strip()} t".replace(" ,", ",") if jump else code
    return found


def executed(program: Path, arguments: list[str], log: Path) -> Iterator[int]:
    """Yield the addresses executed between the driver's marks, in order."""
    command = [
        tool("qemu-aarch64-static", "qemu-aarch64"),
        "-cpu",
        "max",
        "-one-insn-per-tb",
        "-d",
        "exec,nochain",
    ]
    subprocess.run([*command, "-D", str(log), str(program), *arguments], check=True)
    inside = False
    with log.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.endswith("trace_begin\n"):
                inside = True
            elif line.endswith("trace_end\n"):
                return
            elif inside and "/" in line:
                yield int(line.split("/")[1], 16)


def cycles(trace: list[str], cpu: str, folder: Path) -> int:
    """Return the cycles in which `cpu` runs a sequence of instructions, by llvm-mca."""
    text = folder / "trace.s"
    text.write_text("\n".join(trace) + "\n", encoding="ascii")
    command = [
        tool("llvm-mca"),
        "-mtriple=aarch64",
        f"-mcpu={cpu}",
        "-iterations=1",
        "-instruction-info=0",
        "-resource-pressure=0",
    ]
    done = subprocess.run([*command, str(text)], check=False, capture_output=True, text=True)
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if match is None:
        raise SystemExit(f"error: {cpu}: {done.stderr[:600]}")
    return int(match[1])


class Programs:
    """Compiled drivers with their instructions; each trace is taken once."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._folder = folder
        ours = compile_freehold(folder)
        theirs = {wide: compile_llama(source, wide, folder) for wide in FEATURES}
        self._code = {p: instructions(p) for p in (ours, *theirs.values())}
        self._ours, self._theirs, self._traces = ours, theirs, dict[tuple, list[str]]()

    def trace(self, program: Path, *arguments: str) -> list[str]:
        """Return the instructions that a driver's product executes."""
        key = (program, *arguments)
        if key not in self._traces:
            log = self._folder / "log"
            code = self._code[program]
            self._traces[key] = [code[at] for at in executed(program, list(arguments), log)]
            log.unlink()
        return self._traces[key]

    def compare(self, cpu: str, type: str, tokens: int) -> dict[str, object]:
        """Return a row: cycles a weight of both, and instructions a weight."""
        table, wide = CPUS[cpu]
        ours = self.trace(self._ours, type, str(tokens), table)
        theirs = self.trace(self._theirs[wide], type, str(tokens), wide)
        weights = ROWS * INPUTS
        counts = [cycles(each, cpu, self._folder) for each in (ours, theirs)]
        return {
            "cpu": cpu,
            "table": table,
            "type": type,
            "tokens": tokens,
            "ours": counts[0] / weights,
            "llama.cpp": counts[1] / weights,
            "ratio": counts[0] / counts[1],
            "instructions": [len(ours) / weights, len(theirs) / weights],
        }


def main() -> None:
    """Compare, print a table and its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama", type=Path, required=True, metavar="SOURCE")
    parser.add_argument("--cpu", action="append", choices=CPUS)
    parser.add_argument("--type", action="append", choices=TYPES)
    parser.add_argument("--tokens", action="append", type=int, choices=(1, 16))
    a = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        programs = Programs(a.llama, Path(name))
        print("| processor | table | type | tokens | Freehold, cycles a weight | llama.cpp | ratio |")
        print("|---|---|---|---|---|---|---|")
        for cpu in a.cpu or CPUS:
            for type in a.type or TYPES:
                for tokens in a.tokens or (1, 16):
                    row = programs.compare(cpu, type, tokens)
                    rows.append(row)
                    figures = " | ".join(f"{row[key]:.3f}" for key in ("ours", "llama.cpp"))
                    print(
                        f"| {cpu} | {row['table']} | {type} | {tokens} | {figures} | {row['ratio']:.2f} |",
                        flush=True,
                    )
    print(json.dumps({"bench": "cycles", "rows": rows}))


if __name__ == "__main__":
    main()
