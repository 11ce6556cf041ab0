"""Passwords as they are kept: hashed, in PHC strings, which say how they were made.

scrypt is the standard library's; argon2id and bcrypt (what ``htpasswd -B`` writes)
need a package each, the extras ``argon2`` and ``bcrypt``. It must not know users,
files or clients.

A hash comes from a file that may be mistyped or hostile, and it alone says how much
memory and time a check of it takes. So every hash is judged by ``validate`` before
``check`` may be asked about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import importlib
import os
import re
from collections.abc import Callable
from typing import NamedTuple

# 2^14 blocks of 1 KiB: 16 MiB and 45 ms on a core of 2020, which a server can pay for
# each password it has not seen yet (auth.py remembers those it has).
SCRYPT_LN, SCRYPT_R, SCRYPT_P = 14, 8, 1
SALT_OCTETS, HASH_OCTETS = 16, 32

# What one check may take: 64 MiB, and about half a second (bcrypt: one).
MEMORY_MAX = 64 << 20
SCRYPT_WORK_MAX = 1 << 20  # N * r * p
ARGON2_WORK_MAX = 1 << 20  # KiB * passes
# However little work there is for each: a lane of scrypt has PBKDF2 on top of its own, and
# argon2id begins threads for its lanes four times a pass.
LANES_MAX = 16
ARGON2_PASSES_MAX = 64
BCRYPT_COST_MAX = 14
# A shorter hash could be met by guessing.
HASH_OCTETS_MIN = 16

# bcrypt has no more than this many octets of a password, and none behind a NUL: it
# repeats password and NUL for ever, so that "x" and "x\0x" are the same to it.
BCRYPT_OCTETS = 72

# Everything in front of the salt is the group ``cost``: what a check will take.
BASE64 = "([A-Za-z0-9+/]{2,128})"
SCRYPT = re.compile(
    rf"(?P<cost>\$scrypt\$ln=([0-9]{{1,3}}),r=([0-9]{{1,9}}),p=([0-9]{{1,9}}))\${BASE64}\${BASE64}"
)
ARGON2 = re.compile(
    r"(?P<cost>\$argon2id\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=([0-9]{1,9}))"
    rf"\${BASE64}\${BASE64}"
)
# The last character of the salt has four bits that must be zero.
BCRYPT = re.compile(r"(?P<cost>\$2[aby]\$([0-9]{2}))\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")

FOREIGN = {
    "apr1": "MD5 of Apache",
    "1": "MD5 of crypt",
    "5": "SHA-256 of crypt",
    "6": "SHA-512 of crypt",
    "y": "yescrypt",
    "2x": "bcrypt with the error of 2011",
    "argon2i": "argon2i",
    "argon2d": "argon2d",
}
ACCEPTED = "must be $scrypt$ (fastsocks passwd makes it), $argon2id$ or bcrypt ($2b$, $2y$, $2a$)"


def hash_password(secret: bytes) -> str:
    """A new PHC string, with a salt of its own. Takes 16 MiB and about 45 ms. ValueError
    for a secret with a NUL, which not every scheme could tell from another one."""
    if b"\0" in secret:
        raise ValueError("the password must have no NUL octet")
    salt = os.urandom(SALT_OCTETS)
    digest = _scrypt(secret, salt, SCRYPT_LN, SCRYPT_R, SCRYPT_P, HASH_OCTETS)
    return f"$scrypt$ln={SCRYPT_LN},r={SCRYPT_R},p={SCRYPT_P}${_text(salt)}${_text(digest)}"


def check(stored: str, secret: bytes) -> bool:
    """Whether ``stored``, which ``validate`` has accepted, was made from ``secret``.

    Any secret may be asked about; it takes as long for wrong ones as for right ones.
    Releases the GIL while it works.
    """
    return SCHEMES[_name(stored)].check(stored, secret)


def validate(stored: str) -> None:
    """Raises ValueError, in words that hold nothing of ``stored``, unless it is a
    hash that can be checked here and in reasonable memory and time."""
    name = _name(stored)
    scheme = SCHEMES.get(name)
    if scheme is None:
        what = FOREIGN.get(name, "not a password hash known here")
        if stored.startswith("{"):
            what = "a hash of LDAP, such as {SHA}"
        raise ValueError(f"{what}; {ACCEPTED}")
    if scheme.needs is not None:
        _need(*scheme.needs)
    found = scheme.pattern.fullmatch(stored)
    if not found:
        raise ValueError(f"a ${name}$ hash that is cut short or mistyped")
    scheme.judge(found)


def cost(stored: str) -> str:
    """Scheme and parameters of a valid hash: equal for hashes that take equally long."""
    found = SCHEMES[_name(stored)].pattern.fullmatch(stored)
    return found["cost"] if found else ""


# -- schemes ---------------------------------------------------------------


def _judge_scrypt(found: re.Match[str]) -> None:
    ln, r, p = (int(found[group]) for group in (2, 3, 4))
    _judge_base64("scrypt", found[5], found[6])
    if not (ln and r and p):
        raise ValueError("a parameter of scrypt is zero")
    if ln >= 16 * r:  # RFC 7914 section 2: N < 2^(128 * r / 8)
        raise ValueError(
            f"scrypt with ln={ln},r={r},p={p} does not exist; ln must be less than 16 * r"
        )
    too_long = p > LANES_MAX or ln > 30 or r * p << ln > SCRYPT_WORK_MAX
    if too_long or 128 * r << ln > MEMORY_MAX:
        raise ValueError(
            f"scrypt with ln={ln},r={r},p={p} takes too much memory or time for a login;"
            f" must be at most 64 MiB, as ln=16,r=8,p=2, and p at most {LANES_MAX}"
        )


def _judge_argon2(found: re.Match[str]) -> None:
    memory, passes, lanes = (int(found[group]) for group in (2, 3, 4))
    _judge_base64("argon2id", found[5], found[6])
    if not (passes and 1 <= lanes <= LANES_MAX and memory >= 8 * lanes):
        raise ValueError(
            f"argon2id with m={memory},t={passes},p={lanes} does not exist;"
            f" p must be 1 to {LANES_MAX}, and m at least 8 for each"
        )
    too_long = passes > ARGON2_PASSES_MAX or memory * passes > ARGON2_WORK_MAX
    if too_long or memory << 10 > MEMORY_MAX:
        raise ValueError(
            f"argon2id with m={memory},t={passes} takes too much memory or time for a login;"
            f" must be at most 64 MiB, as m=65536,t=3, and t at most {ARGON2_PASSES_MAX}"
        )


def _judge_bcrypt(found: re.Match[str]) -> None:
    if not 4 <= int(found[2]) <= BCRYPT_COST_MAX:
        raise ValueError(f"a bcrypt cost of {found[2]}; must be 04 to {BCRYPT_COST_MAX}")


def _judge_base64(scheme: str, salt: str, digest: str) -> None:
    try:
        lengths = len(_octets(salt)), len(_octets(digest))
    except ValueError:
        raise ValueError(f"a ${scheme}$ hash that is cut short or mistyped") from None
    if lengths[0] < 8 or lengths[1] < HASH_OCTETS_MIN:
        raise ValueError(
            f"a ${scheme}$ hash of {lengths[1]} octets with a salt of {lengths[0]};"
            f" must be at least {HASH_OCTETS_MIN} and 8"
        )


def _check_scrypt(stored: str, secret: bytes) -> bool:
    _, _, parameters, salt, digest = stored.split("$")
    ln, r, p = (int(pair.partition("=")[2]) for pair in parameters.split(","))
    expected = _octets(digest)
    made = _scrypt(secret, _octets(salt), ln, r, p, len(expected))
    # HMAC, inside, fills a key up with NULs: to it "x" and "x\0" are the same.
    return hmac.compare_digest(made, expected) and not secret.endswith(b"\0")


def _check_argon2(stored: str, secret: bytes) -> bool:
    from argon2.exceptions import VerificationError
    from argon2.low_level import Type, verify_secret

    try:
        return bool(verify_secret(stored.encode(), secret, Type.ID))
    except VerificationError:
        return False


def _check_bcrypt(stored: str, secret: bytes) -> bool:
    import bcrypt

    possible = len(secret) <= BCRYPT_OCTETS and b"\0" not in secret
    return bool(bcrypt.checkpw(secret[:BCRYPT_OCTETS], stored.encode())) and possible


def _scrypt(secret: bytes, salt: bytes, ln: int, r: int, p: int, size: int) -> bytes:
    # OpenSSL counts its working space as well: one more block per lane, and two.
    room = 128 * r * ((1 << ln) + p + 2) + (1 << 16)
    return hashlib.scrypt(secret, salt=salt, n=1 << ln, r=r, p=p, maxmem=room, dklen=size)


# -- strings ---------------------------------------------------------------


def _name(stored: str) -> str:
    """Of the scheme: what stands between the first two dollars, "" where there are none."""
    parts = stored.split("$", 2)
    return parts[1] if len(parts) == 3 and not parts[0] else ""


def _need(module: str, package: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"checking this hash needs the package {package}, which is not installed:"
            f" pip install {package}"
        ) from None


def _text(octets: bytes) -> str:
    """base64 without padding, as PHC strings have it."""
    return base64.b64encode(octets).decode().rstrip("=")


def _octets(text: str) -> bytes:
    """Raises ValueError for what ``_text`` would not have written."""
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    if _text(octets) != text:
        raise ValueError("not the base64 of any octets")
    return octets


# -- table -----------------------------------------------------------------


class Scheme(NamedTuple):
    """``judge`` raises ValueError for a match of ``pattern`` that takes too much, or cannot be."""

    pattern: re.Pattern[str]
    judge: Callable[[re.Match[str]], None]
    check: Callable[[str, bytes], bool]
    needs: tuple[str, str] | None = None
    """module that checks it, and the package that brings it"""


_BCRYPT = Scheme(BCRYPT, _judge_bcrypt, _check_bcrypt, ("bcrypt", "bcrypt"))
SCHEMES = {
    "scrypt": Scheme(SCRYPT, _judge_scrypt, _check_scrypt),
    "argon2id": Scheme(ARGON2, _judge_argon2, _check_argon2, ("argon2", "argon2-cffi")),
    "2a": _BCRYPT,
    "2b": _BCRYPT,
    "2y": _BCRYPT,
}
