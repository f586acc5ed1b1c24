"""Everything on the list is found, alone and inside of other text, and its finding does not hold it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from freehold.route.router.detect import DETECTORS, Sieve
from freehold.route.router.detect.detectors import luhn, mod97
from tests.router.detect.lists import Planted, must_find

SIEVE = Sieve()
LIST = must_find()
AROUND = {
    "alone": "{}",
    "in a sentence": "Please note {}, and answer by noon.",
    "at the end": "This is what I have: {}",
    "in brackets": "the customer ({}) wrote",
    "in quotes": 'x = "{}"\n',
    "in code": "value = f('{}', 12)  # line 40",
    "in a table": "| 17 | {} | 2026-11-27 |",
    "after digits": "4 of 12: {}",
    "on its own line": "first\n{}\nlast 12345",
    "in markdown": "**{}**",
    "in xml": "<a>{}</a>",
    "after an umlaut": "für {} gültig",
}


@pytest.mark.parametrize("around", AROUND)
def test_everything_on_the_list_is_found(around: str):
    def found(planted: Planted) -> bool:
        text = AROUND[around].replace("{}", planted.text)
        return planted.name in {finding.name for finding in SIEVE.find([text])}

    assert [planted for planted in LIST if not found(planted)] == []


def test_everything_on_the_list_is_found_inside_of_json():
    missed = [
        planted
        for planted in LIST
        if planted.name
        not in {f.name for f in SIEVE.find([json.dumps({"a": planted.text}, ensure_ascii=False)])}
        and '"' not in planted.text  # escaped quotes: texts_of reads JSON's strings too
    ]
    assert missed == []


@pytest.mark.parametrize("before", ["\n", "\t", "\r\n", "é\n"])
@pytest.mark.parametrize("times", [1, 2])
def test_everything_is_found_after_an_escape_of_json_in_a_text(before: str, times: int):
    """A tool's result is often JSON in a text: the n of `\\n4111...` begins no word."""

    def found(planted: Planted) -> bool:
        text = f"note:{before}{planted.text} "
        for _ in range(times):
            text = json.dumps({"a": text})
        return planted.name in {finding.name for finding in SIEVE.find([text])}

    assert [planted for planted in LIST if '"' not in planted.text and not found(planted)] == []


# What forms, tables and careful writers put between groups; the last are a middle dot, a bullet, blanks of Hangul.
BETWEEN = [
    "\t",
    "\n",
    "\r\n",
    "  ",
    ".",
    " \n",
    "   ",
    "/",
    " / ",
    "_",
    ",",
    ", ",
    ":",
    "\u00b7",
    "\u2022",
    "\u3164",
    "\uffa0",
]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(
    "digits", ["4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "3714 496353 98431"]
)
def test_groups_are_found_with_what_a_form_puts_between_them(between: str, digits: str):
    text = f"the number: {digits.replace(' ', between)} of the customer"
    name = "IBAN" if digits.startswith("DE") else "card number"
    assert name in {finding.name for finding in SIEVE.find([text])}


@pytest.mark.parametrize(
    "row",
    [
        "4111\t1111\t1111\t1111\t2020",
        "17\t4111\t1111\t1111\t1111",
        "1.4111.1111.1111.1111",
        "4111,1111,1111,1111,17",
        "17, 4111, 1111, 1111, 1111",
        "/12/4111/1111/1111/1111",
        "4111:1111:1111:1111:2020",
        "4111, 1111/1111:1111",  # signs of lists and times, each another
    ],
)
def test_a_row_of_a_table_is_no_card(row: str):
    assert not {finding for finding in SIEVE.find([row]) if finding.name == "card number"}


@pytest.mark.parametrize("text", ["jane@example.com。", "写信给jane@example.com吧", "jane@example.comи"])
def test_a_mail_ends_where_another_script_begins(text: str):
    assert {finding.name for finding in SIEVE.find([text])} == {"email address"}


def test_an_own_pattern_finds_letters_that_json_escaped():
    own = Sieve(["Müller", "\U0001f512"])
    assert len(own.find([json.dumps({"name": "Müller \U0001f512"})])) == 2
    assert own.find([json.dumps({"name": "Mueller"}), "C:\\users\\new"]) == set()


def test_every_shape_is_on_the_list_and_the_list_is_as_long_as_promised():
    names = Counter(planted.name for planted in LIST)
    assert set(names) == {detector.name for detector in DETECTORS}
    accounts = {p.text[:2].upper() for p in LIST if p.name == "IBAN" and p.text[:2].isascii()}
    assert len(accounts) >= 20
    codes = {p.text[:3] for p in LIST if p.name == "phone number" and p.text.startswith("+")}
    assert len(codes) >= 10
    assert len({detector.name for detector in DETECTORS if detector.kind == "secrets"}) >= 15


def test_a_finding_never_holds_what_was_found():
    for planted in LIST:
        for finding in SIEVE.find([planted.text]):
            assert planted.text not in str(finding) and str(finding) not in planted.text


@pytest.mark.parametrize("wrong", ["4111111111111112", "9111111111111111", "411111111111111"])
def test_digits_that_are_no_card_are_not_one(wrong: str):
    assert not {f for f in SIEVE.find([wrong]) if f.name == "card number"}


def test_check_digits_are_checked():
    assert luhn("79927398713") and not luhn("79927398710")
    assert mod97("GB82WEST12345698765432") == 1 and mod97("GB82WEST12345698765433") != 1


@pytest.mark.parametrize(
    "text",
    [
        "DE88 3704 0044 0532 0130 00",
        "000-12-3456",
        "666-12-3456",
        "912-12-3456",
        "a profit of +1,212,555,012 or +49,301,234,567",
        "Authorization: Token your-token-goes-here-1",
        "authorization: token based schemes of RFC 6750",
        "123-00-4567",
        "2 69 05 49 588 157 81",
        "BSN 111222334",
        "git@github.com:freehold/x.git",
        "A@B.transpose(0, 1)",
        "@app.route",
        "postgres://user:password@localhost/db",
        "https://user:${TOKEN}@host/x",
        "2026-11-27T21:55:03.123+00:00",
        "0000020 020144 071063 010116",
        "01-23-45-67-89-ab",
        "sk-learn and sk-image",
        "task-management-for-everybody-in-the-house",
    ],
)
def test_what_only_looks_like_it_is_not_found(text: str):
    assert SIEVE.find([text]) == set()
