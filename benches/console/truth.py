"""Whether the page says what the command line prints: 40 models of the catalogue on 5 machines, byte for byte.

`python benches/console/truth.py [--models 40]`. A server on a home of its own is asked as the page asks it; the verbs
run in this process. Prints what differs, and one JSON line; exit 1 where a byte does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

MACHINES = ("rtx-4090", "2xh100", "m3-max:64gb", "zen4-2vcpu", "l4")
CONTEXTS = ("4096", "32768")
COMPANY = "adopt = false\n[company]\npurpose = 'commercial'\nusers = 2000\nseat = 'DE'\n"


def questions(count: int) -> list[tuple[str, dict[str, str]]]:
    """Return what is asked: fit on each machine, licence, cost on each machine that is rented out."""
    from freehold.base import catalog

    models = [m for m in catalog.models() if m.role == "generator"]
    chosen = [models[i * len(models) // count] for i in range(count)]
    fits = [
        ("fit", {"model": m.id, "on": on, "context": c}) for m in chosen for on in MACHINES for c in CONTEXTS
    ]
    laws = [("license", {"name": m.id}) for m in chosen]
    costs = [("cost", {"model": m.id, "on": on}) for m in chosen for on in MACHINES]
    return [*fits, *laws, *costs]


def printed(home: Path, verb: str, words: dict[str, str]) -> str:
    """Return what `freehold VERB ... --json` prints; "" where it ends with an error."""
    from click.testing import CliRunner

    from freehold.base.config import load_settings
    from freehold.cli.main import command_of

    args = [words[name] for name in ("model", "name") if name in words]
    args += [f"--{name}={value}" for name, value in words.items() if name not in ("model", "name")]
    command = command_of(verb)
    settings = load_settings({"FREEHOLD_HOME": str(home)})
    return CliRunner().invoke(command, [*args, "--json"], obj=settings, standalone_mode=False).stdout


def said(url: str, verb: str, words: dict[str, str]) -> str:
    """Return what the page is answered; "" for an error."""
    query = urlencode({"verb": verb, **words})
    try:
        with urllib.request.urlopen(f"{url}/console/api/choose?{query}", timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as e:
        return "" if e.code in (400, 404) else f"status {e.code}"


def main() -> None:
    """Ask both and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=40)
    args = parser.parse_args()
    from tests.http.conftest import start

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "config.toml").write_text(COMPANY)
        server, began = start(Path(folder), offline=True), time.monotonic()
        try:
            differ, empty, asked = [], 0, questions(args.models)
            for verb, words in asked:
                here, there = said(server.url, verb, words), printed(home, verb, words)
                empty += not there
                if here != there:
                    differ.append(f"{verb} {words}")
                    print("differs:", differ[-1])
        finally:
            server.end()
    found = {"models": args.models, "machines": len(MACHINES), "asked": len(asked), "refused_by_both": empty}
    print(json.dumps({**found, "different": len(differ), "seconds": round(time.monotonic() - began, 1)}))
    if differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
