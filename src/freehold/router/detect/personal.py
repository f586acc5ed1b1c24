"""Detectors of personal data with a check digit or a form of its own: mail, cards, accounts, numbers of persons.

Cards: lengths and prefixes of ISO/IEC 7812 issuers, and Luhn. Accounts: ISO 13616 lengths, and mod 97. Persons: the
US social security number by its ranges, the French NIR by its key, the Dutch BSN by its sum and a word beside it, as
one number of nine digits in eleven passes the sum.
Path: sieve.py -> PERSONAL
"""

from __future__ import annotations

import re
from functools import cache
from itertools import accumulate
from pathlib import Path

from freehold.router.detect.detector import Detector, Hit

# Domains of a house's own network, beside those of the public list.
_INNER = frozenset({b"local", b"internal", b"lan", b"intranet", b"corp"})
# Names that programs use as the user of an address: git@host is a place, not a person.
_PROGRAMS = frozenset({b"git", b"hg", b"svn", b"root", b"localhost", b"pkg", b"npm"})


@cache
def _domains() -> frozenset[bytes]:
    lines = Path(__file__).with_name("tlds.txt").read_bytes().splitlines()
    return frozenset(b" ".join(lines[1:]).split()) | _INNER


def _is_mail(hit: Hit) -> bool:
    """An address in a public domain; `a@b.T` and `git@host` are code."""
    local, _, domain = re.sub(rb"(?i)%40", b"@", hit.value).partition(b"@")
    top = domain.rpartition(b".")[2].lower()
    if local.lower() in _PROGRAMS or hit.after == b"(" or b".." in domain:
        return False
    # A letter of another script may belong to the domain, or to the sentence after it.
    return any(_is_top(each) for each in {top, re.split(rb"[\x80-\xff]", top)[0]}) and not hit.after.isalnum()


def _is_top(top: bytes) -> bool:
    """Return whether a domain may end so; one of another script is compared as its ASCII form."""
    if not top.isascii():
        try:
            top = top.decode().encode("idna")
        except UnicodeError:
            return False
    return top in _domains() or (top.startswith(b"xn--") and len(top) > 5 and top.isascii())


# (first digits from, to), the lengths that go with them
_ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4, 4, (16, 19)),  # Visa; its 13 digits are no longer issued
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),  # Discover
    (644, 649, (16, 19)),
    (65, 65, (16, 19)),
    (3528, 3589, (16, 19)),  # JCB
    (300, 305, (14,)),  # Diners Club
    (3095, 3095, (14,)),
    (36, 36, (14, 16, 19)),
    (38, 39, (14, 16, 19)),
    (62, 62, (16, 17, 18, 19)),  # UnionPay
    (5018, 5018, (13, 15, 16, 19)),  # Maestro
    (5020, 5020, (16, 19)),
    (5038, 5038, (16, 19)),
    (5893, 5893, (16, 19)),
    (6304, 6304, (16, 18, 19)),
    (6759, 6759, (16, 18, 19)),
    (6761, 6763, (16, 18, 19)),
)
# How cards are printed: groups of four with a rest, four-six-five, four-six-four, or in one.
_PRINTED = re.compile(r"(?:4 ){3}[1-4](?: [1-3])?|4 6 [45]|8 8|1[3-9]")


_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")  # twice a digit, and the sum of that number's digits


def luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of ISO/IEC 7812."""
    ascii_digits = digits.encode()
    total = sum(ascii_digits[-1::-2]) + sum(ascii_digits[-2::-2].translate(_DOUBLED)) - 48 * len(ascii_digits)
    return total % 10 == 0


def _lengths(digits: str) -> tuple[int, ...]:
    for first, last, lengths in _ISSUERS:
        if first <= int(digits[: len(str(first))]) <= last:
            return lengths
    return ()


def _is_card(hit: Hit) -> bool:
    """The card may be followed by other digits, such as its date: every whole number of groups is tried.

    Between groups there is a blank or a hyphen. What a form or a table puts there (`_SIGNS`) is taken where the row
    has these groups alone.
    """
    text = hit.value.decode("latin-1")
    groups, between = re.split(r"\D+", text), re.findall(r"\D+", text)
    digits = printed = ""
    lengths = _lengths((groups[0] + "000")[:4])
    for number, group in enumerate(groups) if lengths else ():
        digits += group
        printed += f" {len(group)}" if printed else str(len(group))
        if len(digits) in lengths and luhn(digits) and _PRINTED.fullmatch(printed) and len(set(digits)) > 1:
            usual = all(each in (" ", "-") for each in between[:number])
            whole = len(digits) == sum(map(len, groups))
            return usual or (whole and _stands_alone(hit, between[0]) and _evenly_divided(between))
    return False


def _stands_alone(hit: Hit, sign: str) -> bool:
    """Return whether no other number is in the same row or column, which `sign` may divide."""
    before, after = hit.text[max(hit.start - 5, 0) : hit.start], hit.text[hit.end : hit.end + 5]
    next_to = rb"(?:[\s.,;|]{1,2}|" + re.escape(sign.encode("latin-1")) + rb")"
    return not (re.search(rb"\d" + next_to + rb"$", before) or re.match(next_to + rb"\d", after))


def _evenly_divided(between: list[str]) -> bool:
    """Return whether signs that lists, paths and times have as well are the same between all groups."""
    return len(set(between)) <= 1 or not any(sign in each for each in between for sign in "/_,:")


# ISO 13616: the length of an account number by its country, registry of the end of 2024.
_ACCOUNTS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL", "FK", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK", "MN"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "SO", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
    **dict.fromkeys(("RU",), 33),
}

_COUNTRIES = "|".join(sorted(_ACCOUNTS)).encode()


# Groups with what a form, a table or a line's end puts between them. Groups of one length alone: any digits with such
# signs would be most numbers of a log.
_SIGNS = rb"[ \-./_,:\t\r\n]{1,4}"
_MAYBE_SIGNS = rb"[ \-./_,:\t]{0,3}"  # in numbers of persons, which a word or a key proves
_ACCOUNT_IN_FORM = rb"(?:" + _SIGNS + rb"[A-Z0-9]{4}){2,7}(?:" + _SIGNS + rb"[A-Z0-9]{1,3})?"
_CARD_IN_FORM = (
    rb"\b[2-6]\d{3}(?:" + _SIGNS + rb"\d{4}){3}\b|\b3[47]\d{2}" + _SIGNS + rb"\d{6}" + _SIGNS + rb"\d{5}\b"
)


def mod97(account: str) -> int:
    """Return the remainder of ISO 7064 of an account number: 1 where its check digits are right."""
    return int("".join(str(int(c, 36)) for c in account[4:] + account[:4])) % 97


def _is_account(hit: Hit) -> bool:
    """Words after the account may be part of the candidate: its country says where it ends."""
    text = hit.value.decode("latin-1").upper()
    length = _ACCOUNTS.get(text[:2])
    if length is None:
        return False
    groups, between = re.split(r"[\W_]+", text), re.findall(r"[\W_]+", text)
    account = "".join(groups)[:length]
    ends = list(accumulate(map(len, groups)))
    if len(account) != length or length not in ends or mod97(account) != 1:
        return False
    return _evenly_divided(between[: ends.index(length)])


def _digits(hit: Hit) -> str:
    return re.sub(r"\D", "", hit.value.decode("latin-1"))


def _is_ssn(hit: Hit) -> bool:
    """Areas 000, 666 and 900 and above, group 00 and serial 0000 were never given out."""
    digits = _digits(hit)[-9:]
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    around = hit.before in (b"-", b"/", b"+") or hit.after in (b"-", b"/")
    return not (area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000" or around)


def _is_nir(hit: Hit) -> bool:
    """Key = 97 - number mod 97; Corsica's departments 2A and 2B count as 19 and 18."""
    text, between = hit.value.decode("latin-1").upper(), re.findall(r"[\W_]+", hit.value.decode("latin-1"))
    text = re.sub(r"[\W_]", "", text)
    number = text[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(text[13:]) and _evenly_divided(between)


def _is_bsn(hit: Hit) -> bool:
    """Weights 9 to 2, and -1 for the last digit: the sum is a multiple of 11."""
    digits = _digits(hit)[-9:].zfill(9)
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return digits != "0" * 9 and sum(int(d) * w for d, w in zip(digits, weights, strict=True)) % 11 == 0


PERSONAL = (
    Detector(
        "pii",
        "email address",
        rb"[A-Za-z0-9\x80-\xff][A-Za-z0-9._%+\-\x80-\xff]{0,63}(?:@|%40)"
        rb"(?:[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9\-\x80-\xff]{0,62}[A-Za-z0-9\x80-\xff])?\.)+"
        rb"[A-Za-z\x80-\xff][A-Za-z0-9\-\x80-\xff]{1,47}",
        _is_mail,
    ),
    Detector("pii", "card number", rb"\b[2-6]\d{2,3}(?:[ \-]?\d){10,16}\b|" + _CARD_IN_FORM, _is_card),
    Detector(
        "pii",
        "IBAN",
        rb"\b(?i:(?:" + _COUNTRIES + rb")\d{2}(?:(?:[ \-]?[A-Z0-9]){11,29}|" + _ACCOUNT_IN_FORM + rb"))\b",
        _is_account,
    ),
    Detector("pii", "US social security number", rb"\b\d{3}-\d{2}-\d{4}\b", _is_ssn),
    Detector(
        "pii",
        "US social security number",
        rb"(?i:\bssn\b|social.security)[^\d\n]{0,24}\d{3}"
        + _MAYBE_SIGNS
        + rb"\d{2}"
        + _MAYBE_SIGNS
        + rb"\d{4}\b",
        _is_ssn,
    ),
    Detector(
        "pii",
        "French NIR",
        _MAYBE_SIGNS.join(
            (
                rb"\b[1-478]",
                rb"\d{2}",
                rb"(?:0[1-9]|1[0-2]|[2-9]\d)",
                rb"(?:\d{2}|2[ABab])",
                rb"\d{3}",
                rb"\d{3}",
                rb"\d{2}\b",
            )
        ),
        _is_nir,
    ),
    Detector(
        "pii",
        "Dutch BSN",
        rb"(?i:\bbsn\b|burgerservice|sofi.?nummer|citizen.service)[^\d\n]{0,32}\d{3,4}"
        + _MAYBE_SIGNS
        + rb"\d{2}"
        + _MAYBE_SIGNS
        + rb"\d{3}\b",
        _is_bsn,
    ),
    Detector(
        "pii",
        "Dutch BSN",
        rb"\b\d{9}\b[^\d\n]{0,16}(?i:\bbsn\b|burgerservice)",
        lambda c: _is_bsn(c._replace(end=c.start + 9)),
    ),
)
