"""Secrets out of texts that leave the machine: passwords, tokens, keys, and what the environment holds."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping

HIDDEN = "[hidden]"

# Words in the names of environment variables and fields whose values are nobody's business.
_SECRET_WORDS = (
    "password", "passwd", "passphrase", "pass", "pwd", "secret", "secrets", "token", "apikey", "key", "auth",
    "authorization", "credential", "credentials", "cookie", "webhook", "dsn", "signature", "sig", "pat",
    "bearer",
)  # fmt: skip
_NO_SECRETS = ("PWD", "OLDPWD")
_NO_VALUES = ("true", "false", "none", "null", "auto", "basic", "bearer")
_SHORTEST = 4

_SCHEME = r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)"
# A password may itself hold a slash or an @: all that stands before the last @ of an address is hidden.
_USER_INFO = re.compile(rf"{_SCHEME}(?:[^\s:/?#@\"'<>]*:[^\s\"'<>]*|[^\s/?#@\"'<>]*)@")
_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*KEY-----|\Z)", re.DOTALL
)
_HEADER = re.compile(r"(?i)\b(?P<scheme>bearer|basic|digest)\s+(?=\S*[\d=])[A-Za-z0-9._~+/=:-]{6,}")
_FIELD = re.compile(
    r"""(?ix)
    (?P<name>
        (?:(?<![a-z0-9_.-])[a-z0-9_.-]{0,40}?
            (?:passwords?|passwd|passphrase|pwd|secrets?|token|api[_-]?key|[a-z0-9][_-]key|signature|credentials?
               |authorization|auth|auth[_-]string|cookie|dsn|webhook(?:[_-]url)?)
        |\b(?:pass|key|sig|pat)(?==))
        (?:[_-]?\d{1,3})?)
    (?P<sign>\\?["']?\s*(?:=|:(?!//))\s*)
    (?!\[hidden\])
    (?:\\?"[^"]*"|\\?'[^']*'|(?:(?:bearer|basic|digest|token)\s+)?[^\s,;&"'}\]]+)
    """
)
_SHAPES = re.compile(
    r"""(?x)
    \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                              # access keys of an S3 store
    | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,} | \bglpat-[\w-]{16,}
    | \bhf_[A-Za-z0-9]{20,} | \bsk-[A-Za-z0-9_-]{16,} | \bpn[ub]_[A-Za-z0-9]{16,}
    | \bxox[a-z]-[A-Za-z0-9-]{10,}
    | \beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*       # JSON web tokens
    | /services/T[A-Z0-9]+/B[A-Z0-9]+/\w+ | /api/webhooks/\d+/[\w-]+   # addresses that are secrets themselves
    """
)  # fmt: skip


def redacted(text: str) -> str:
    """Text without passwords, tokens, keys, and the values of environment variables that are secrets."""
    for value in _secret_values(os.environ):
        text = re.sub(_as_word(value), HIDDEN, text)
    text = _KEY_BLOCK.sub(HIDDEN, text)
    text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _FIELD.sub(rf"\g<name>\g<sign>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<scheme> {HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def is_secret(name: str) -> bool:
    """Whether a variable or field of this name holds something that must not be shown."""
    if name in _NO_SECRETS:
        return False
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return any(word in _SECRET_WORDS or word.endswith(("password", "secret", "token")) for word in words)


def _secret_values(environment: Mapping[str, str]) -> list[str]:
    """Every form in which a secret of the environment may be met, the longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        for secret in _secrets_of(name, value):
            found |= {secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
            found.add(" ".join(secret.split()))
            found.add(base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode())
    return sorted(found, key=len, reverse=True)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    """The secrets in a variable: the whole of it, its user and password, or the password of an address."""
    whole = value.strip()
    candidates = []
    if is_secret(name):
        candidates = [whole, *(whole.partition(":")[2:] if "://" not in whole else ())]
    if "://" in whole:
        user_info = whole.partition("://")[2].rpartition("@")[0]
        password = user_info.partition(":")[2]
        candidates += [user_info if password else "", password, urllib.parse.unquote(password)]
    for one in candidates:
        if len(one) >= _SHORTEST and one.lower() not in _NO_VALUES:
            yield one


def _as_word(value: str) -> str:
    """A short value is only hidden where it stands alone: `test` must not eat `latest`."""
    pattern = re.escape(value)
    return pattern if len(value) >= 8 else rf"(?<!\w){pattern}(?!\w)"
