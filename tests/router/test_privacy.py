"""Must hold whatever happens: no byte of a private prompt at a remote, in a file, in a metric, in an error, in a log.

Requests of every door, route, way to be private and sequence of faults, several at once, while the file is read again.
Four times 500 cases; FREEHOLD_PRIVACY_CASES changes the number, FREEHOLD_PRIVACY_SEED the four.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from freehold.route.router.ledger.rows import audit
from tests.router.house import rows_of
from tests.router.private_world import MARK, Answered, Planned, World, drawn, opened_world

CASES = int(os.environ.get("FREEHOLD_PRIVACY_CASES", "2000"))
SEEDS = [4 * int(os.environ.get("FREEHOLD_PRIVACY_SEED", "0")) + each for each in range(4)]
AT_ONCE = 8
pytestmark = pytest.mark.long


def asked_all(world: World, cases: list[Planned]) -> list[Answered]:
    """Ask everything, several at once; the file changes in the middle, again and again."""
    with world.client() as client, ThreadPoolExecutor(AT_ONCE) as pool:

        def one(numbered: tuple[int, Planned]) -> Answered:
            number, planned = numbered
            if number % 50 == 25:
                world.reload()
            return world.ask(client, planned)

        return list(pool.map(one, enumerate(cases)))


def marks_at(data: bytes) -> set[str]:
    return {mark.decode() for mark in MARK.findall(data)}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_byte_of_a_private_prompt_leaves_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    draw = random.Random(seed)
    with opened_world(tmp_path, monkeypatch) as world:
        cases = [drawn(draw, number, world.elsewhere.port) for number in range(CASES // len(SEEDS))]
        answers = asked_all(world, cases)
        world.settled()
        with world.client() as client:
            metrics = client.get("/metrics").text
        far = world.far.bytes_received + world.paris.bytes_received
        box = world.box.bytes_received
        other = world.elsewhere.bytes_received, world.proxy.bytes_received
    private = {planned.mark for planned in cases if planned.private}
    assert not marks_at(far) & private
    assert other == (b"", b""), "a redirect was followed, or a proxy of the environment used"
    assert not marks_at(metrics.encode())
    assert {str(path): marks for path, data in world.files() if (marks := marks_at(data))} == {}
    assert [a for a in answers if a.status != 200 and a.planned.mark in a.text] == []
    assert [a for a in answers if a.status == 500] == []
    _is_no_empty_claim(answers, marks_at(far), marks_at(box))
    _audit_agrees(tmp_path, cases, marks_at(far))


def _is_no_empty_claim(answers: list[Answered], far: set[str], box: set[str]) -> None:
    """The run would prove nothing if no private request were answered, or no other one went far."""
    private = [a for a in answers if a.planned.private]
    others = [a for a in answers if not a.planned.private]
    assert sum(a.status == 200 for a in private) > len(private) / 5, Counter(a.status for a in private)
    assert sum(a.planned.mark in box for a in private) > len(private) / 10
    assert sum(a.planned.mark in far for a in others) > len(others) / 6
    assert sum(a.status >= 400 for a in private) > len(private) / 20


def _audit_agrees(folder: Path, cases: list[Planned], far: set[str]) -> None:
    found = audit(folder / "ledger.sqlite", "private", 0, 4e9)
    assert (found.left, found.unknown, found.left_to) == (0, 0, {})
    assert found.sure == found.rows > 0
    abroad = audit(folder / "ledger.sqlite", "abroad", 0, 4e9)
    assert set(abroad.left_to) <= {"far", "claude"} and abroad.left > 0
    rows = [row for row in rows_of(folder / "ledger.sqlite") if row.left_house]
    said = {row.request_id for row in rows}
    went = {f"case-{p.number}" for p in cases if p.mark in far}
    assert went <= said
    # An attempt that ended before its bytes were seen may have been sent: it counts as if it was.
    unseen = [row for row in rows if row.request_id not in went]
    assert [r for r in unseen if not {a.cause for a in r.attempts} & {"timeout", "connect", "left"}] == []
