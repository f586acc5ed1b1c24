"""Says which parts of the local system and kernels were never measured, and asks for a report of them.

docs/guides/platforms.md says the same as a table. Knows names of systems, processors and kernel tables.
Path: doctor -> notes
"""

from __future__ import annotations

from freehold.machine.processor import Processor

_INVITE = "please send us the file of: freehold bench smollm2:135m --report report.json"


def notes(chip: Processor, isa: str, architecture: str, is_mac: bool) -> list[str]:
    """Return sentences for the user of such a machine; none where its like was measured."""
    is_arm = architecture.lower() in ("arm64", "aarch64")
    texts = []
    if chip.is_translated:
        texts.append("this Python is an x86-64 program under Rosetta; with an arm64 Python, NEON kernels run")
    if is_arm and isa == "scalar":
        texts.append(
            "no vector kernels run here: plain loops compute, several times slower than this processor could"
        )
    elif is_arm:
        texts.append(
            f"the {isa} kernels are correct by emulation, fast by model, not yet measured on such a machine"
        )
    if is_mac:
        texts.append("Freehold is compiled for macOS by cross-compilation and was not yet run on a Mac by us")
    return [*texts, _INVITE] if texts else []
