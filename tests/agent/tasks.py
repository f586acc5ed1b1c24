"""Ten tasks in folders that are made here: what is asked, and whether the folder is right afterwards.

`script`: the turns by which a model that can do it does it. Used by the tests, with a model that follows the script,
and by benches/agent/tasks.py, with real ones.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.agent.world import Turn, act, say


@dataclass(frozen=True)
class AgentTask:
    name: str
    task: str
    files: dict[str, str]
    script: tuple[Turn, ...]
    right: Callable[[Path], bool]
    tools: tuple[str, ...] = ("files", "python")


def _read(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


_TEXTS = {
    f"day{i}.txt": f"Day {i}\nvisitors: {10 * i}\nweather: {'rain' if i % 2 else 'sun'}\n"
    for i in range(1, 6)
}
_SALES = "region,month,amount\n" + "".join(
    f"{region},{month},{amount}\n"
    for region, month, amount in (
        ("north", 1, 10),
        ("south", 1, 5),
        ("north", 2, 7),
        ("east", 2, 1),
        ("south", 3, 6),
    )
)
_LOG = "".join(
    f"2026-12-0{1 + i % 3} {'ERROR' if i % 4 == 0 else 'INFO'} request {i} took {i * 7 % 50} ms\n"
    for i in range(40)
)


def _runs_add(folder: Path) -> bool:
    names: dict[str, object] = {}
    try:
        exec(_read(folder, "calc.py"), names)
        add = names["add"]
        return callable(add) and add(2, 3) == 5
    except Exception:
        return False


def _json(folder: Path, name: str) -> object:
    try:
        return json.loads(_read(folder, name))
    except ValueError:
        return None


TASKS = [
    AgentTask(
        "rename a function across files",
        "Rename the function total_price to sum_price in every Python file of the folder. Change nothing else.",
        {
            "shop/price.py": "def total_price(items):\n    return sum(items)\n",
            "shop/cart.py": "from shop.price import total_price\n\n\n"
            "def checkout(items):\n    return total_price(items)\n",
            "main.py": "from shop.price import total_price\n\nprint(total_price([1, 2]))\n",
            "README.md": "A shop.\n",
        },
        (
            act("search_files", "1. Find it. 2. Replace it.", text="total_price"),
            act("edit_file", path="shop/price.py", old="total_price", new="sum_price"),
            act("edit_file", path="shop/cart.py", old="total_price", new="sum_price", every=True),
            act("edit_file", path="main.py", old="total_price", new="sum_price", every=True),
            act("search_files", text="total_price"),
            say("I renamed total_price to sum_price in three files."),
        ),
        lambda f: all(
            "total_price" not in _read(f, name) and "sum_price" in _read(f, name)
            for name in ("shop/price.py", "shop/cart.py", "main.py")
        ),
    ),
    AgentTask(
        "fix a failing test",
        "The test in test_calc.py fails. Find the mistake in calc.py and fix it. Do not change the test.",
        {
            "calc.py": "def add(a, b):\n    return a - b\n",
            "test_calc.py": "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n",
        },
        (
            act("read_file", "1. Read both. 2. Fix. 3. Run the test.", path="test_calc.py"),
            act("read_file", path="calc.py"),
            act("edit_file", path="calc.py", old="return a - b", new="return a + b"),
            act("python", code="import test_calc\ntest_calc.test_add()\nprint('passed')"),
            say("calc.py subtracted; it adds now, and the test passes."),
        ),
        _runs_add,
    ),
    AgentTask(
        "convert csv to json",
        "Convert sales.csv to sales.json: a list of objects with the columns as keys, in the same order.",
        {"sales.csv": _SALES},
        (
            act("read_file", "1. Read it. 2. Convert it.", path="sales.csv"),
            act(
                "python",
                code="import csv, json\nrows = list(csv.DictReader(open('sales.csv')))\n"
                "json.dump(rows, open('sales.json', 'w'), indent=1)\nprint(len(rows))",
            ),
            act("read_file", path="sales.json"),
            say("sales.json has the five rows."),
        ),
        lambda f: (
            isinstance(rows := _json(f, "sales.json"), list)
            and [{k: str(v) for k, v in row.items()} for row in rows]
            == list(csv.DictReader(io.StringIO(_SALES)))
        ),
    ),
    AgentTask(
        "write a report from five files",
        "Read day1.txt to day5.txt and write report.md: one line with each day's visitors, and their total.",
        dict(_TEXTS),
        (
            act("list_files", "1. Read all. 2. Write the report."),
            *(act("read_file", path=f"day{i}.txt") for i in range(1, 6)),
            act(
                "write_file",
                path="report.md",
                text="".join(f"- Day {i}: {10 * i} visitors\n" for i in range(1, 6))
                + "\nTotal: 150 visitors\n",
            ),
            say("report.md has the five days and the total, 150."),
        ),
        lambda f: (
            "150" in _read(f, "report.md") and all(str(10 * i) in _read(f, "report.md") for i in range(1, 6))
        ),
    ),
    AgentTask(
        "count errors of a log",
        "Count the lines with ERROR in app.log for each date, and write errors.json: an object from date to count.",
        {"app.log": _LOG},
        (
            act("read_file", "1. Look. 2. Count.", path="app.log", last=5),
            act(
                "python",
                code="import json, collections\nlines = [l for l in open('app.log') if 'ERROR' in l]\n"
                "c = collections.Counter(l.split()[0] for l in lines)\n"
                "json.dump(c, open('errors.json', 'w'))\nprint(dict(c))",
            ),
            say("errors.json has the counts."),
        ),
        lambda f: (
            _json(f, "errors.json")
            == {
                date: sum(line.startswith(date) and "ERROR" in line for line in _LOG.splitlines())
                for date in ("2026-12-01", "2026-12-02", "2026-12-03")
            }
        ),
    ),
    AgentTask(
        "add a function with its test",
        "Add a function slugify(text) to text.py that makes a text lower case and puts - between its words, "
        "and a test of it in test_text.py.",
        {"text.py": "def shout(text):\n    return text.upper()\n"},
        (
            act("read_file", "1. Read. 2. Add. 3. Test.", path="text.py"),
            act(
                "edit_file",
                path="text.py",
                old="    return text.upper()\n",
                new='    return text.upper()\n\n\ndef slugify(text):\n    return "-".join(text.lower().split())\n',
            ),
            act(
                "write_file",
                path="test_text.py",
                text="from text import slugify\n\n\n"
                "def test_slugify():\n    assert slugify('Two Words') == 'two-words'\n",
            ),
            act("python", code="import test_text\ntest_text.test_slugify()\nprint('passed')"),
            say("slugify is there, with a test that passes."),
        ),
        lambda f: "def slugify" in _read(f, "text.py") and "slugify" in _read(f, "test_text.py"),
    ),
    AgentTask(
        "change a setting",
        "In config/app.ini set port to 8080. Leave everything else as it is.",
        {
            "config/app.ini": "[server]\nhost = localhost\nport = 5000\n\n[log]\nlevel = info\n",
            "README": "An app.\n",
        },
        (
            act("list_files", "1. Find the file. 2. Change it."),
            act("read_file", path="config/app.ini"),
            act("edit_file", path="config/app.ini", old="port = 5000", new="port = 8080"),
            say("The port is 8080."),
        ),
        lambda f: (
            _read(f, "config/app.ini") == "[server]\nhost = localhost\nport = 8080\n\n[log]\nlevel = info\n"
        ),
        ("files",),
    ),
    AgentTask(
        "sum a table by region",
        "Add up the amounts of sales.csv for each region, and write totals.csv with the columns region,total, sorted.",
        {"sales.csv": _SALES},
        (
            act("read_file", "1. Read. 2. Add up.", path="sales.csv"),
            act(
                "python",
                code="import csv, collections\nt = collections.Counter()\nfor r in csv.DictReader(open('sales.csv')):\n"
                "    t[r['region']] += int(r['amount'])\n"
                "with open('totals.csv', 'w') as f:\n    f.write('region,total\\n')\n"
                "    for k in sorted(t):\n        f.write(f'{k},{t[k]}\\n')",
            ),
            act("read_file", path="totals.csv"),
            say("totals.csv has three regions."),
        ),
        lambda f: _read(f, "totals.csv").split() == ["region,total", "east,1", "north,17", "south,11"],
    ),
    AgentTask(
        "find where a name is defined",
        "In which file is the function parse_date defined? Write that path, and nothing else, to answer.txt.",
        {
            "lib/dates.py": "import time\n\n\ndef parse_date(text):\n    return time.strptime(text)\n",
            "lib/use.py": "from lib.dates import parse_date\n\nparse_date('2026')\n",
            "lib/other.py": "x = 'parse_date'\n",
        },
        (
            act("search_files", "1. Search. 2. Write.", text="def parse_date"),
            act("write_file", path="answer.txt", text="lib/dates.py"),
            say("It is in lib/dates.py."),
        ),
        lambda f: _read(f, "answer.txt").strip() == "lib/dates.py",
        ("files",),
    ),
    AgentTask(
        "add a field to many files",
        'Add "checked": false to the object in each file of items.',
        {f"items/{name}.json": json.dumps({"name": name, "size": i}) + "\n" for i, name in enumerate("abcd")},
        (
            act("list_files", "1. List. 2. Change each.", path="items"),
            act(
                "python",
                code="import json, os\nfor n in sorted(os.listdir('items')):\n"
                "    p = 'items/' + n\n    d = json.load(open(p))\n"
                "    d['checked'] = False\n    json.dump(d, open(p, 'w'))\n    print(p, d)",
            ),
            say("The four files have it."),
        ),
        lambda f: all(
            _json(f, f"items/{name}.json") == {"name": name, "size": i, "checked": False}
            for i, name in enumerate("abcd")
        ),
    ),
]
