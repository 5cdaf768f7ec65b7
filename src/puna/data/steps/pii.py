"""Masking of personal data: e-mail addresses, public IP addresses, phone numbers, keys.

A mask is a fixed text, so that a model learns the place but not the person. Private and reserved IP ranges stay: they
name nobody. Phone numbers need a country code or the shape of a national number with separators; a run of digits alone
is a price, a date or an id far more often. Keys are known prefixes (AWS, GitHub, Slack, Google, private key blocks).
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from puna.data.document import Document
from puna.data.steps.step import Edit, Edited, StepConfig

What = Literal["email", "ip", "phone", "key"]

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[\w.+%-]{0,62}[\w+%-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){0,6}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w+./-])(?:"
    r"\+\d{1,3}(?:[ .()/-]{0,2}\d){6,13}"  # with a country code
    r"|00\d{2}(?:[ .()/-]{0,2}\d){7,12}"
    r"|(?:1[ .-])?\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"  # (555) 123-4567
    r"|(?:1[.-])?\d{3}[.-]\d{3}[.-]\d{4}"  # 555-123-4567
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}"  # 020 7946 0958
    r")(?:\s?(?:x|ext\.?)\s?\d{1,5})?(?![\w/-]|\.\d)"
)
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}\b"
    r"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}\b"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    re.DOTALL,
)


class PiiConfig(StepConfig):
    """Masks personal data and keys."""

    kind: Literal["pii"] = "pii"
    """Which kind of step this is."""
    mask: tuple[What, ...] = ("email", "ip", "key")
    """What to mask; `phone` is off by default, since it also finds other numbers."""
    email_text: str = "email@example.com"
    """What stands for an e-mail address."""
    ip_text: str = "192.0.2.1"
    """What stands for an IP address; 192.0.2.0/24 is kept for documentation (RFC 5737)."""
    phone_text: str = "555-0100"
    """What stands for a phone number."""
    key_text: str = "<key>"
    """What stands for a key."""


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _replace(pattern: re.Pattern[str], mask: str, text: str, wanted: Callable[[str], bool]) -> tuple[str, int]:
    count = 0

    def masked(match: re.Match[str]) -> str:
        nonlocal count
        if match.group() == mask or not wanted(match.group()):
            return match.group()
        count += 1
        return mask

    return pattern.sub(masked, text), count


def mask(text: str, config: PiiConfig) -> tuple[str, dict[str, int]]:
    """A text with personal data masked, and how often, by kind."""
    counts = Counter[str]()
    if "key" in config.mask:
        text, counts["keys masked"] = _replace(_KEY, config.key_text, text, lambda _: True)
    if "email" in config.mask and "@" in text:
        text, counts["e-mail addresses masked"] = _replace(_EMAIL, config.email_text, text, lambda _: True)
    if "ip" in config.mask:
        text, n4 = _replace(_IPV4, config.ip_text, text, _is_public)
        text, n6 = (
            _replace(_IPV6, config.ip_text, text, _is_public) if "::" in text or text.count(":") > 4 else (text, 0)
        )
        counts["IP addresses masked"] = n4 + n6
    if "phone" in config.mask:
        text, counts["phone numbers masked"] = _replace(_PHONE, config.phone_text, text, lambda _: True)
    return text, {what: n for what, n in counts.items() if n}


def _edit(documents: Sequence[Document], config: PiiConfig) -> list[Edited]:
    results = []
    for document in documents:
        text, counts = mask(document.text, config)
        results.append(Edited(document.with_text(text), counts=counts))
    return results


PII = Edit(PiiConfig, _edit)
