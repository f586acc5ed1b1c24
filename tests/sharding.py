"""Which cases of the collected tests a run takes. Knows ids alone.

`python -m pytest --collect-only -m "not big" | python -m tests.sharding` shows that the four shards of `make test`
have every case among them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Container, Iterable
from zlib import crc32

SHARDS = 4


def runs(
    ids: Iterable[str], every: int = 1, shard: int | None = None, heavy: Container[str] = ()
) -> list[bool]:
    """Return for each case, in the order of collection, whether it runs. A test runs with its first case.

    `every`: one case in so many of each test, under an emulator or a sanitizer; a prime meets all values of each
    parameter, whatever their number. `shard`, 0 to 3: a quarter by the id's hash, which no other test's change moves.
    `heavy`: cases that take seconds; a shard has its quarter of them, first cases too.
    """
    seen = Counter[str]()
    out: list[bool] = []
    for id in ids:
        test = id.partition("[")[0]
        always = shard is None or (seen[test] == 0 and id not in heavy)
        other = not always and crc32(id.encode()) % SHARDS != shard
        out.append(not other and seen[test] % every == 0)
        seen[test] += 1
    return out


def main() -> int:
    """Read pytest's list of ids; print each shard's size, and exit 1 where a case is in none."""
    ids = [line for line in sys.stdin.read().splitlines() if "::" in line]
    shards = [runs(ids, shard=shard) for shard in range(SHARDS)]
    print(", ".join(f"shard {k}: {sum(shard):,}" for k, shard in enumerate(shards)), f"of {len(ids):,} cases")
    missed = [id for id, *ran in zip(ids, *shards, strict=True) if not any(ran)]
    print("\n".join(missed) or "each case is in one of them")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
