"""A process that serves requests from a ledger, and is killed.

`python -m tests.router.ledger.killed FOLDER KILLS SEED`
Each life is a fork, so that thirty of them take seconds. What the provider charged and what the client saw whole is
appended to `log` by plain writes, which a kill does not undo.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from freehold.base.errors import BudgetSpent
from freehold.route.router.gateway import SpendLimit
from freehold.route.router.ledger.rows import Reservation, row_id
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.record import Budgets
from tests.router.ledger.rows import NOON, row

LIMIT = SpendLimit(3_000_000, "day")
CLIENTS, MOST = 16, 3000


async def client(books: Budgets, log: int, draw: random.Random, key: str) -> None:
    while True:
        name, nano = row_id(NOON), draw.randrange(1, MOST)
        try:
            if key == "alice":
                await books.reserve(Reservation(name, key, LIMIT, MOST, NOON))
            else:
                await books.ready()
        except BudgetSpent:
            await asyncio.sleep(0.001)
            continue
        os.write(log, f"charged {name} {key} {nano}\n".encode())
        await asyncio.sleep(draw.random() * 0.003)
        await books.book(row(name, key=key, nano=nano, answer_id=name))
        os.write(log, f"whole {name} {key} {nano}\n".encode())


async def live(folder: Path, seed: int) -> None:
    ledger, draw = Ledger.open(folder / "ledger.sqlite"), random.Random(seed)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    books = Budgets(ledger)
    os.write(log, b"life 0 0 0\n")
    await asyncio.gather(*(client(books, log, draw, "alice" if n % 2 else "bob") for n in range(CLIENTS)))


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    for life in range(kills):
        pid = os.fork()
        if pid == 0:
            asyncio.run(live(folder, life))
            os._exit(1)
        time.sleep(0.03 + draw.random() * 0.15)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"life {life} ended by itself"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
