"""Detectors of keys and other secrets, by the prefixes that their issuers document.

Each is long enough, or has a prefix rare enough, that its shape decides; where it is not, a word beside it must say
what it is. Knows no text of a request beyond a hit.
Path: sieve.py -> CREDENTIALS
"""

from __future__ import annotations

import base64
import binascii
import re

from freehold.router.detect.detector import Detector, Hit

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
