"""Candidate prompts for the greedy references: texts a small model continues with conviction.

Raw ones are continued as they stand; chat ones become one user turn. Our own words, or in the public domain.
"""

from __future__ import annotations


def _json_rows(count: int) -> str:
    return "[\n" + "".join(
        f'  {{"id": {i}, "name": "item{i}", "price": {i * 10}}},\n' for i in range(1, count)
    )


def _sql_rows(count: int) -> str:
    head = "CREATE TABLE squares (n INTEGER, square INTEGER);\n"
    return head + "".join(f"INSERT INTO squares VALUES ({i}, {i * i});\n" for i in range(1, count))


def _csv_rows(count: int) -> str:
    return "day,month,year,label\n" + "".join(f"{i},3,2024,day_{i}\n" for i in range(1, count))


_MONTHS = "January\nFebruary\nMarch\nApril\nMay\nJune\nJuly\nAugust\nSeptember\nOctober\nNovember\nDecember\n"
_ALPHABET = " ".join("abcdefghijklmnopqrstuvwxyz") + "\n"
_LAMB = (
    "Mary had a little lamb,\nIts fleece was white as snow;\nAnd everywhere that Mary went,\n"
    "The lamb was sure to go.\n"
)
_FARM = (
    "The farmer opened the old wooden gate and counted seven brown cows, three white goats and one very "
    "patient donkey before he walked slowly back to the kitchen to make his morning coffee.\n"
)
_ACCESSORS = """class Point:
    def __init__(self, x, y, z):
        self._x = x
        self._y = y
        self._z = z

    def get_x(self):
        return self._x

    def set_x(self, x):
        self._x = x

    def get_y(self):
        return self._y

    def set_y(self, y):
        self._y = y

"""
_TESTS = """def add(a, b):
    return a + b

def test_add_1_2():
    assert add(1, 2) == 3

def test_add_2_3():
    assert add(2, 3) == 5

def test_add_3_4():
    assert add(3, 4) == 7

"""
_ENUM = """switch (month) {
    case 1: return "January";
    case 2: return "February";
    case 3: return "March";
    case 4: return "April";
"""
_HTML = "<table>\n" + "".join(f"  <tr><td>row {i}</td><td>{i}</td></tr>\n" for i in range(1, 6))
_TIMES = "".join(f"7 x {i} = {7 * i}\n" for i in range(1, 5))
_CAPITALS = "France: Paris\nGermany: Berlin\nItaly: Rome\nSpain: Madrid\nPortugal: Lisbon\nGreece: Athens\n"

RAW = [
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
    "2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,",
    _ALPHABET * 2 + "a b c",
    "Monday\nTuesday\nWednesday\nThursday\nFriday\nSaturday\nSunday\nMonday\nTuesday\nWednesday\n",
    _MONTHS + "January\n",
    "red green blue red green blue red green blue red green blue red",
    "The quick brown fox jumps over the lazy dog. " * 4,
    _LAMB * 2,
    _FARM * 2 + _FARM[:40],
    _json_rows(6),
    _sql_rows(6),
    _csv_rows(9),
    _ACCESSORS,
    _TESTS,
    _ENUM,
    _HTML,
    _TIMES,
    _CAPITALS * 2 + _CAPITALS[:30],
    "for (int i = 0; i < n; i++) {\n    sum += a[i];\n}\n" * 3,
    'import os\nimport sys\nimport json\n\ndef main():\n    print("hello")\n\n' * 2 + "import os\n",
    "".join(f"#define FLAG_{i} (1 << {i})\n" for i in range(4)),
    "- [x] step 1\n- [x] step 2\n- [x] step 3\n- [x] step 4\n- [x] step 5\n",
    "one two three four five six seven eight nine ten\n" * 2 + "one",
    "0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b,",
    "Question: What is 2 + 2?\nAnswer: 4\n\nQuestion: What is 3 + 3?\nAnswer: 6\n\nQuestion: 4 + 4?\n",
    "Zürich, Genève, Köln, München, Malmö, Århus, Łódź, São Paulo\n" * 3,
]

CHAT = [
    "Count from 1 to 40, separated by commas.",
    "Write a Python function is_prime(n) that returns whether n is a prime number.",
    "Repeat this line ten times: hello world, this is a test",
    "Write a Python function that computes the factorial of n recursively.",
    "Write the SQL statement that creates a table users with id, name and email.",
    "List the days of the week, one per line, three times over.",
    "Write a C program that prints the numbers from 1 to 10.",
    "Reverse a string in Python. Show the code.",
]
