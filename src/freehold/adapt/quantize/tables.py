"""The trellis tables of T2 and T3: 128 values each, in units of `unit` for a source of variance 1.

Trained on Gaussian rows: 24 starts, half at random and half with each state's successors spread evenly over the
quantiles, the best two of them for longer. Groups of 32 with four-bit scales come to a squared error of 0.0759 (2 bits)
and 0.0198 (3 bits). Knows no tensor: every tensor is written with its table, so another may have one of its own.
Path: trellis.encode -> TABLES
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TrellisTable:
    """Values of the 128 windows, int8 of up to 127 in size, and the scale by which they mean a source of variance 1."""

    values: NDArray[np.int8]
    unit: float


def _table(unit: float, text: str) -> TrellisTable:
    return TrellisTable(np.array(text.split(), np.int8), unit)


# fmt: off
TABLES = {
    2: _table(0.019858, """
        -12 66 20 50 -119 -23 -88 -72 50 27 -34 1 -14 -62 -17 22 46 -10 -5 -67 -3 59
        -83 -37 -70 49 20 67 38 -6 99 -111 23 26 66 -19 37 -68 -31 2 -23 -43 5 34
        61 11 -50 -7 8 -47 26 56 -39 21 -25 16 2 15 -13 -54 -72 81 -35 -2 78 -9
        -41 -71 -2 11 44 -32 7 86 38 127 16 48 6 -43 -26 61 79 13 103 -49 5 64
        36 -19 87 -12 1 -38 35 32 -45 -56 -8 18 -33 46 6 34 -67 0 -102 -33 -66 -17
        41 75 -79 20 -42 -17 27 -10 43 -13 -23 -68 -42 20 -28 31 1 -36
    """),
    3: _table(0.020453, """
        -92 6 -26 56 -39 -4 -43 42 -29 -56 79 29 -18 56 58 20 -49 40 67 -16 26 89
        44 -24 18 125 -22 -15 92 -32 -30 -50 -12 -78 -10 -34 91 27 8 72 -99 15 44 -61
        -36 16 34 64 62 -9 39 109 -21 11 -7 -44 2 -16 -69 -35 49 -54 1 -90 19 -44
        5 -58 48 -67 -80 -8 60 32 -40 95 -2 33 -108 -11 -28 -25 -82 32 10 -41 24 7
        -14 -33 9 -2 28 -127 -53 39 3 69 -46 14 -6 47 75 23 -51 0 25 13 -62 0
        -14 -29 40 23 21 -1 -66 -20 -23 -76 35 61 -6 51 12 -16 17 4
    """),
}
# fmt: on
