"""A test sees the code's values and objects as if they were in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import platforms
from freehold.base.sandbox.code import failure

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp and Landlock are Linux's")

PASSES = {
    "plain values": (
        "def same(x): return x",
        "for x in (None, True, 3, -1.5, float('inf'), 10**5000, 'é\\ud800', b'\\xff', (1, (2,)), [1, [2]], {1: {2: 3}},"
        " {1, 2}, frozenset('ab'), 2j, range(1, 9, 2), bytearray(b'x')):\n"
        "    assert same(x) == x and type(same(x)) is type(x)",
    ),
    "values of the library": (
        "import collections, datetime, decimal, fractions\ndef same(x): return x",
        "import collections, datetime, decimal, fractions\n"
        "for x in (collections.deque([1]), collections.Counter('aab'), collections.OrderedDict(a=1),"
        " decimal.Decimal('1.50'), fractions.Fraction(-1, 3), datetime.date(2026, 1, 2), datetime.timedelta(1, 2, 3),"
        " datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)):\n    assert same(x) == x and type(same(x)) is type(x)",
    ),
    "a class with state": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
        "s = Stack(); s.push(1); s.push('b'); assert len(s) == 2 and s.pop() == 'b' and s.items == [1]\n"
        "assert isinstance(s, Stack) and not isinstance(3, Stack); s.items = [7]; assert s.pop() == 7 and not s",
    ),
    "objects of one class compared": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    x: int\n    y: int\n"
        "    def __add__(self, other): return P(self.x + other.x, self.y + other.y)",
        "assert P(1, 2) == P(1, 2) != P(2, 1) and P(1, 2) < P(2, 0) and P(1, 2) + P(1, 1) == P(2, 3)\n"
        "assert P(1, 2) != (1, 2) and repr(P(1, 2)) == 'P(x=1, y=2)' and sorted([P(2, 1), P(1, 2)])[0] == P(1, 2)",
    ),
    "a named tuple, an enum, a subclass of dict": (
        "import collections, enum\nP = collections.namedtuple('P', 'x y')\nclass C(enum.IntEnum):\n    RED = 1\n"
        "class D(dict): pass\ndef f(): return P(1, 2)",
        "p = f(); assert p == (1, 2) and p.x == 1 and p[1] == 2 and list(p) == [1, 2]\n"
        "assert C.RED == 1 and C.RED is C.RED and C(1) is C.RED and D(a=1) == {'a': 1} and D(a=1)['a'] == 1",
    ),
    "arguments changed in place": (
        "def f(xs, d, s):\n    xs.sort(); xs[0].append(9); d['k'] = xs; s.add(3); return xs",
        "xs, d, s = [[2], [1]], {}, set(); first = xs[1]; r = f(xs, d, s)\n"
        "assert r is xs and xs == [[1, 9], [2]] and xs[0] is first and d['k'] is xs and s == {3}",
    ),
    "a list that holds itself": ("def f(x): x.append(x); return x", "x = []; assert f(x) is x and x[0] is x"),
    "a function of the test": (
        "def apply(f, xs): return [f(x) for x in xs]\n"
        "def safe(f):\n    try: f()\n    except ValueError as e: return str(e)",
        "seen = []\ndef bad(): raise ValueError('why')\n"
        "assert apply(lambda x: seen.append(x) or x * 2, (1, 2)) == [2, 4] and seen == [1, 2] and safe(bad) == 'why'",
    ),
    "an object of the test": (
        "def total(node):\n    return node.val + (total(node.next) if node.next else 0)\ndef put(node): node.val = 5",
        "class Node:\n    def __init__(self, val, next=None): self.val, self.next = val, next\n"
        "n = Node(1, Node(2)); assert total(n) == 3; put(n); assert n.val == 5",
    ),
    "generators both ways": (
        "def count():\n    n = 0\n    while True: yield n; n += 1\ndef total(it): return sum(it)",
        "g = count(); assert [next(g), next(g)] == [0, 1] and total(x for x in (1, 2)) == 3 and total(iter([4])) == 4",
    ),
    "exceptions": (
        "class Bad(ValueError):\n    def __init__(self, code): super().__init__(f'bad {code}'); self.code = code\n"
        "class Worse(Bad): pass\ndef f(x): raise Worse(x)\ndef g(): return {}['k']",
        "try: f(3)\nexcept Bad as e: assert str(e) == 'bad 3' and e.code == 3 and isinstance(e, ValueError)\n"
        "else: assert False\ntry: g()\nexcept KeyError as e: assert e.args == ('k',)\nelse: assert False",
    ),
    "names that the code changes": (
        "n = 0\ndef inc():\n    global n\n    n += 1",
        "inc(); assert n == 1; inc(); assert n == 2",
    ),
    "imports of the code": ("import math\nfrom typing import List", "assert math.floor(2.5) == 2 and List"),
    "a context manager": (
        "class Open:\n    def __enter__(self): self.on = True; return self\n"
        "    def __exit__(self, *e): self.on = False",
        "with Open() as o: assert o.on\nassert not o.on",
    ),
    "a function with a name of Python's own that the test does not use": (
        "def max(a): return a",
        "assert True",
    ),
    "unittest": (
        "def add(a, b): return a + b",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add([1], [2]), [1, 2])\n"
        "r = unittest.TestResult()\nunittest.defaultTestLoader.loadTestsFromTestCase(T).run(r)\n"
        "assert r.wasSuccessful()",
    ),
    "numpy": (
        "import numpy as np\ndef mean(xs): return np.mean(xs)\ndef twice(a): return a * 2",
        "import numpy as np\nassert mean([1, 2]) == 1.5 and (twice(np.array([[1, 2]])) == [[2, 4]]).all()",
    ),
}

FAILS = {
    "a wrong value": ("def add(a, b): return a - b", "assert add(2, 2) == 4", "AssertionError"),
    "an error in a call": ("def f(): return 1 / 0", "f()", "ZeroDivisionError"),
    "a name that neither defines": ("", "f()", "NameError"),
    "code that defines two functions of Python's own and nothing else": (
        "def abs(x): return 0\ndef sum(xs): return 0",
        "assert abs(sum([1, 2]) - 3) == 0",
        "the code defines abs, sum",
    ),
    "code that hides a function that the test uses": (
        "def abs(x): return 0\ndef f(x): return 0",
        "assert abs(f(2) - 4) == 0",
        "AssertionError",
    ),
    "code that asks for the test's names": (
        "def f(): return expected",
        "expected = 3\nassert f() == 3",
        "NameError",
    ),
    "an object in a sum with a value": (
        "class V:\n    def __sub__(s, o): return 0\ndef f(): return V()",
        "assert f() - 1 == 0",
        "TypeError",
    ),
    "a value of 16 MB": ("def f(): return 'a' * (1 << 24)", "assert f()", "can cross"),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_test_passes_that_would_pass_in_one_process(name: str):
    assert failure(*PASSES[name]) == ""


@pytest.mark.heavy
def test_what_tests_of_code_often_do_works_in_two_processes():
    """Each of these failed when objects, exceptions and streams crossed in fewer ways."""
    wrong = {}
    for part in Path(__file__).with_name("honest.txt").read_text().split("\n== ")[1:]:
        name, _, body = part.partition("\n")
        code, _, test = body.partition("\n--\n")
        wrong[name] = failure(code, test)
    assert not {name: why for name, why in wrong.items() if why}


@pytest.mark.parametrize("name", FAILS)
def test_a_test_fails_with_its_reason(name: str):
    code, test, why = FAILS[name]
    assert why in failure(code, test)
