"""Detectors of personal data and of credentials: each a shape that the sieve looks for, and the check that decides.

Checks are counted: a text may hold a candidate every seven bytes, and each costs some 10 us, one of a telephone
number up to 1 ms. An `Effort` bounds their sum. Knows no text of a request beyond a hit and its neighbours.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

DetectKind = Literal["pii", "secrets", "pattern"]


class TooManyHits(Exception):
    """A text has more candidates than its Effort allows to check."""


class Effort:
    """What the checks of one request may cost: 1 for a candidate (8 to 11 us), PARSE for a number that is parsed."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, units: int) -> None:
        """Count units. Raises TooManyHits beyond the limit."""
        self.left -= units
        if self.left < 0:
            raise TooManyHits


PARSE = 4  # units of a number that phonenumbers parses for one country: 25 to 45 us


class Hit(NamedTuple):
    """A place in a text that has a shape. `text` is UTF-8; `effort`: of the whole request."""

    text: bytes
    start: int
    end: int
    effort: Effort

    @property
    def value(self) -> bytes:
        """The candidate itself."""
        return self.text[self.start : self.end]

    @property
    def before(self) -> bytes:
        """The byte in front of it, or nothing."""
        return self.text[max(self.start - 1, 0) : self.start]

    @property
    def after(self) -> bytes:
        """The byte that follows, or nothing."""
        return self.text[self.end : self.end + 1]


@dataclass(frozen=True, slots=True)
class Detector:
    """`pattern`: an expression for RE2 over bytes, without groups that capture."""

    kind: DetectKind
    name: str
    pattern: bytes
    check: Callable[[Hit], bool] = lambda hit: True  # the shape alone decides


class Finding(NamedTuple):
    """What was found, never its value."""

    kind: DetectKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


# --- personal data with a check digit or a form of its own: mail, cards, accounts, numbers of persons
# Cards: lengths and prefixes of ISO/IEC 7812 issuers, and Luhn. Accounts: ISO 13616 lengths, and mod 97. Persons:
# the US social security number by its ranges, the French NIR by its key, the Dutch BSN by its sum and a word beside
# it, as one number of nine digits in eleven passes the sum.

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


# Sex, year, month (or a number of those without one), department, commune, order, key.
_NIR = (
    rb"\b[1-478]", rb"\d{2}", rb"(?:0[1-9]|1[0-2]|[2-9]\d)", rb"(?:\d{2}|2[ABab])", rb"\d{3}", rb"\d{3}", rb"\d{2}\b",
)  # fmt: skip


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
        _MAYBE_SIGNS.join((rb"(?i:\bssn\b|social.security)[^\d\n]{0,24}\d{3}", rb"\d{2}", rb"\d{4}\b")),
        _is_ssn,
    ),
    Detector("pii", "French NIR", _MAYBE_SIGNS.join(_NIR), _is_nir),
    Detector(
        "pii",
        "Dutch BSN",
        rb"(?i:\bbsn\b|burgerservice|sofi.?nummer|citizen.service)[^\d\n]{0,32}"
        + _MAYBE_SIGNS.join((rb"\d{3,4}", rb"\d{2}", rb"\d{3}\b")),
        _is_bsn,
    ),
    Detector(
        "pii",
        "Dutch BSN",
        rb"\b\d{9}\b[^\d\n]{0,16}(?i:\bbsn\b|burgerservice)",
        lambda c: _is_bsn(c._replace(end=c.start + 9)),
    ),
)


# --- keys and other secrets, by the prefixes that their issuers document ----------------------------
# Each is long enough, or has a prefix rare enough, that its shape decides; where it is not, a word beside it
# must say what it is.

# What examples and templates write where a password goes.
_PLACEHOLDERS = re.compile(
    rb"(?i)[<${%\[(*]|^(?:pass(?:word|wd|phrase)?|pwd?|pw|secret|user(?:name)?|changeme|token|key|x+|\.+|postgres|guest|root|admin|example|test)$"
)
_PASSWORD = re.compile(rb"://[^:@/]*:([^@]*)@")


def _has_password(hit: Hit) -> bool:
    match = _PASSWORD.search(hit.value)
    return bool(match and not _PLACEHOLDERS.search(match[1]))


def _is_mixed(hit: Hit) -> bool:
    """A random key of forty characters of base64 has capitals, small letters and digits; a digest has no capitals."""
    value = hit.value[-40:]
    return bool(re.search(rb"[A-Z]", value) and re.search(rb"[a-z]", value) and re.search(rb"\d", value))


def _authorizes(hit: Hit) -> bool:
    """Basic is a name and a password in base64; what others carry has letters and digits, and is not an example."""
    scheme, value = hit.value.rpartition(b" ")[0].lower(), hit.value.split()[-1]
    value = re.sub(rb"^(?i:token=)[\"']?", b"", value)
    if scheme.endswith(b"basic"):
        try:
            decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            return False
        return decoded.isascii() and b":" in decoded[1:-1]
    mixed = re.search(rb"[A-Za-z]", value) and re.search(rb"\d", value)
    return bool(mixed and not re.search(rb"(?i)token|your|key|example|xxx|\.\.\.|1234567", value))


def _key(name: str, pattern: bytes) -> Detector:
    return Detector("secrets", name, pattern)


CREDENTIALS = (
    _key("private key (PEM)", rb"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    _key("AWS access key id", rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    Detector(
        "secrets",
        "AWS secret access key",
        rb"(?i:aws|secret|access)[\w.\- ]{0,24}[\"']?(?:=>|[:=]|\bis\b| )[\s\"']{0,4}[A-Za-z0-9/+]{40}\b",
        _is_mixed,
    ),
    _key(
        "GitHub token", rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b"
    ),
    _key("GitLab token", rb"\bgl(?:pat|ptt|dt|rt|cbt|oas|soat|ft|agent|imt)-[A-Za-z0-9_\-]{20,}"),
    _key("Anthropic key", rb"\bsk-ant-[a-z0-9]{2,12}-[A-Za-z0-9_\-]{32,}"),
    _key("OpenRouter key", rb"\bsk-or-v1-[0-9a-f]{64}\b"),
    _key("OpenAI key", rb"\bsk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_\-]{20,}|\bsk-[A-Za-z0-9]{32,64}\b"),
    _key("Google API key", rb"\bAIza[A-Za-z0-9_\-]{35}"),
    _key("Google OAuth secret", rb"\bGOCSPX-[A-Za-z0-9_\-]{28}"),
    _key(
        "Slack token",
        rb"\bxox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9\-]{10,}|\bxapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}",
    ),
    _key("Slack webhook", rb"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{20,}"),
    _key("Stripe key", rb"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}\b|\bwhsec_[A-Za-z0-9+/]{32,}"),
    _key("npm token", rb"\bnpm_[A-Za-z0-9]{36}\b"),
    _key("PyPI token", rb"\bpypi-AgEI[A-Za-z0-9_\-]{50,}"),
    _key("Hugging Face token", rb"\b(?:hf|api_org)_[A-Za-z]{34}\b"),
    _key("SendGrid key", rb"\bSG\.[A-Za-z0-9_\-]{22}\.[A-Za-z0-9_\-]{43}"),
    _key("Twilio key", rb"\b(?:SK|AC)[0-9a-f]{32}\b"),
    _key("JSON web token", rb"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    _key(
        "Azure key",
        rb"\b(?i:AccountKey|SharedAccessKey|SharedSecretKey)=[A-Za-z0-9+/]{42,86}={1,2}|[?&]sig=[A-Za-z0-9%]{43,63}%3[Dd]",
    ),
    _key("xAI key", rb"\bxai-[A-Za-z0-9]{40,}"),
    _key("Groq key", rb"\bgsk_[A-Za-z0-9]{40,}"),
    _key("Perplexity key", rb"\bpplx-[A-Za-z0-9]{40,}"),
    _key("Replicate token", rb"\br8_[A-Za-z0-9]{37,}"),
    Detector(
        "secrets",
        "Authorization header",
        rb"(?i:authorization)[\"']{0,2} ?[:=,] ?[\"']?"
        rb"(?i:basic +[A-Za-z0-9+/]{8,}={0,2}"
        rb"|(?:bearer|token|api-?key) +(?:token=[\"']?)?[A-Za-z0-9_\-.+/~]{16,}={0,2})",
        _authorizes,
    ),
    _key("DigitalOcean token", rb"\bdo[opr]_v1_[a-f0-9]{64}\b"),
    _key("Freehold key", rb"\bfh-[A-Za-z0-9_\-]{32}"),
    Detector(
        "secrets",
        "address with a password",
        rb"\b[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/@\"'<>]{0,64}:[^\s/@\"'<>]{3,128}@[A-Za-z0-9\[]",
        _has_password,
    ),
)


# --- telephone numbers, each with the countries whose rules decide (phonenumbers) -------------------
# A number with its country's code is found anywhere. One without is found where it is written in a form that
# its country uses, with its separators, or after a word such as "phone": bare digits are order numbers more
# often.

# Asked in this order after a word such as "phone".
_ANY = (
    "US", "GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "PL", "SE", "PT", "IN", "JP", "BR", "AU", "IE", "DK",
)  # fmt: skip
_WORDS = (
    rb"phone|\btel\b|telefon|t\xc3\xa9l\xc3\xa9ph|tel\xc3\xa9f|\bt\xc3\xa9l\b|\bmobile?\b|\bhandy\b|\bcell\b|cellul|"
    rb"\bfax\b|\bfon\b|\bfon\.|whatsapp|\bportable\b|m\xc3\xb3vil|movil|rufnummer|\bcall\b|\bnumero\b|sms"
)

_BETWEEN_DIGITS = re.compile(r"[_,:\t]+")  # between digits; phonenumbers would read no further
_THOUSANDS = re.compile(rb"\+\d{1,3}(?:,\d{3})+")
_WORD_BEFORE = re.compile(r"^[^\d+(]*")


def valid_phone(regions: tuple[str, ...], hit: Hit) -> bool:
    """Return whether one of the countries has such a number; `regions` empty: the one that its code names."""
    text = _BETWEEN_DIGITS.sub(" ", _WORD_BEFORE.sub("", hit.value.decode("latin-1")))
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
    "fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan",
    "voicemail",
)  # fmt: skip


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
