"""Detectors of telephone numbers, each with the countries whose rules decide (phonenumbers, after libphonenumber).

A number with its country's code is found anywhere. One without is found where it is written in a form that its
country uses, with its separators, or after a word such as "phone": bare digits are order numbers more often.
Path: sieve.py -> PHONES
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any

from freehold.router.detect.detector import PARSE, Detector, Hit

# Asked in this order after a word such as "phone".
_ANY = (
    "US",
    "GB",
    "DE",
    "FR",
    "IT",
    "ES",
    "NL",
    "BE",
    "CH",
    "AT",
    "PL",
    "SE",
    "PT",
    "IN",
    "JP",
    "BR",
    "AU",
    "IE",
    "DK",
)
_WORDS = (
    rb"phone|\btel\b|telefon|t\xc3\xa9l\xc3\xa9ph|tel\xc3\xa9f|\bt\xc3\xa9l\b|\bmobile?\b|\bhandy\b|\bcell\b|cellul|"
    rb"\bfax\b|\bfon\b|\bfon\.|whatsapp|\bportable\b|m\xc3\xb3vil|movil|rufnummer|\bcall\b|\bnumero\b|sms"
)

_SIGNS = re.compile(r"[_,:\t]+")  # between digits; phonenumbers would read no further
_THOUSANDS = re.compile(rb"\+\d{1,3}(?:,\d{3})+")
_WORD_BEFORE = re.compile(r"^[^\d+(]*")


def valid_phone(regions: tuple[str, ...], hit: Hit) -> bool:
    """Return whether one of the countries has such a number; `regions` empty: the one that its code names."""
    text = _SIGNS.sub(" ", _WORD_BEFORE.sub("", hit.value.decode("latin-1")))
    if hit.value[:1] in (b"+", b"("):
        rest = hit.text[hit.end : hit.end + 2]
        # a sum, a call of a function, a decimal number, thousands
        if hit.before.isalnum() or re.match(rb"[.,:]\d", rest) or _THOUSANDS.fullmatch(hit.value):
            return False
    elif re.match(rb"[-:/_@.][0-9A-Za-z]", hit.text[hit.end : hit.end + 2]):
        return False  # a part of a longer name or number
    import phonenumbers

    if not regions and text.startswith("00"):
        text = "+" + text[2:]
    for region in _possible(regions, text) if regions else (None,):
        hit.effort.spend(PARSE)
        try:
            number = phonenumbers.parse(text, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return True
    return False


def _possible(regions: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Return the regions that may have a number, which saves most parses: 19 of them cost 0.4 ms.

    A number is valid where what a country's prefix leaves of it fits a form of a country with the same code. So a
    region is possible where digits end so, with at most 6 more before: a prefix, or the code. After what dials
    another country (00, 010, 011) comes any code.
    """
    digits = re.sub(r"\D", "", text)
    if len(regions) < 2 or _ABROAD.match(digits):
        return regions
    return tuple(regions[i] for i in sorted(_forms_of(regions).Match(digits.encode()) or ()))


_ABROAD = re.compile(r"0(?:0|1[01])[1-9]")
_KINDS = (
    "fixed_line",
    "mobile",
    "toll_free",
    "premium_rate",
    "shared_cost",
    "personal_number",
    "voip",
    "pager",
    "uan",
    "voicemail",
)


@cache
def _forms_of(regions: tuple[str, ...]) -> Any:
    """Return what says at once in which of the regions a number may be valid."""
    import phonenumbers
    import re2

    form_set = re2.Set.FullMatchSet()
    for region in regions:
        code = phonenumbers.country_code_for_region(region)
        known = [
            phonenumbers.PhoneMetadata.metadata_for_region(sharing)
            for sharing in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]
        ]
        kinds = [getattr(of, kind) for of in known if of is not None for kind in _KINDS]
        forms = [kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern]
        form_set.Add(rf"\d{{0,6}}(?:{'|'.join(forms)})".encode())
    form_set.Compile()
    return form_set


def _phone(pattern: bytes, *regions: str) -> Detector:
    return Detector("pii", "phone number", pattern, partial(valid_phone, regions))


PHONES = (
    _phone(rb"\+[1-9]\d{7,14}\b|\+\(?[1-9]\d{0,6}[ ()\-/_\t]{1,3}\d(?:[ ().\-/_\t]{0,3}\d){4,13}\b"),
    # With points: groups, or as registries write it, +1.2125550123; a short rest makes a decimal number.
    _phone(rb"\+[1-9]\d{0,2}(?:\.\d{1,4}){1,5}\.\d{1,8}\b|\+[1-9]\d{0,2}\.\d{8,12}\b"),
    _phone(rb"\+[1-9]\d{0,2}(?:(?:,\d{1,8}){2,6}|(?::\d{1,8}){2,6})\b"),
    _phone(rb"\b00 ?[1-9]\d{0,2}[ ().\-/]{1,2}\d(?:[ ().\-/]{0,2}\d){5,12}\b"),
    _phone(rb"(?:\([2-9]\d{2}\) ?|\b[2-9]\d{2}[\-.])[2-9]\d{2}[\-.]\d{4}\b", "US"),
    _phone(rb"\b0[1-9](?: \d{2}){4}\b|\b0[1-9](?:\.\d{2}){4}\b|\b0[1-9](?:-\d{2}){4}\b", "FR", "NL"),
    _phone(
        rb"\b0(?:2\d \d{4} \d{4}|7\d{3} \d{6}|7\d{3} \d{3} \d{3}|1\d{2} \d{3} \d{4}|1\d{3} \d{6})\b", "GB"
    ),
    _phone(rb"\b01[567]\d{1,2}[ /\-]\d{7,8}\b|\b0[2-9]\d{1,3}(?:/| / )\d{5,8}\b", "DE", "AT"),
    _phone(rb"\b0[1-9](?:-\d{8}|\d-\d{7})\b", "NL"),
    _phone(rb"\b0\d{2} \d{3} \d{2} \d{2}\b", "CH", "BE"),
    _phone(rb"\b04\d{2}[ /]\d{2} \d{2} \d{2}\b", "BE"),
    _phone(rb"\b07\d-\d{3} ?\d{2} ?\d{2}\b", "SE"),
    _phone(rb"\b0\d{1,2}-\d{4}-\d{4}\b", "JP"),
    _phone(rb"\(\d{2}\) ?9?\d{4}-\d{4}\b", "BR"),
    _phone(rb"\b04\d{2} \d{3} \d{3}\b|\(0[2378]\) ?\d{4} \d{4}\b", "AU"),
    _phone(rb"(?i:" + _WORDS + rb")[^\d\n+(]{0,20}\(?\d(?:[ ().\-/_,:\t]{0,3}\d){6,13}\b", *_ANY),
)


def load_countries() -> None:
    """Import the rules of all countries in PHONES, which takes some 50 ms: at the start, not in a request."""
    for detector in PHONES:
        check = detector.check
        if isinstance(check, partial) and len(check.args[0]) > 1:
            _forms_of(check.args[0])
