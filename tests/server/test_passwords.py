# Passwords as they are kept: every scheme checks what it should and nothing else, and a
# hash that is foreign, mistyped or a trap is refused before anybody works on it.

from __future__ import annotations

import base64
import hashlib
import sys

import argon2.low_level
import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks.passwords import check, cost, hash_password, validate

SECRETS = [
    b"correct horse",
    b"",
    b" ",
    "p\u00e4ssword".encode(),
    b"\xff\xfe",
    b"a:b$c#d",
    b"p" * 72,
]
LONG = [b"p" * 255, b"\xff" * 255, b"nul\0nul"]

SALT, DIGEST = "c2FsdHNhbHQ", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY"
BCRYPT = "$2b$04$" + "." * 22 + "a" * 31


def text(octets: bytes) -> str:
    return base64.b64encode(octets).decode().rstrip("=")


def scrypt(secret: bytes) -> str:
    digest = hashlib.scrypt(secret, salt=b"saltsalt", n=16, r=1, p=1, dklen=32)
    return f"$scrypt$ln=4,r=1,p=1${text(b'saltsalt')}${text(digest)}"


def argon2id(secret: bytes) -> str:
    raw = argon2.low_level.hash_secret(secret, b"saltsalt", 1, 8, 1, 16, argon2.low_level.Type.ID)
    return raw.decode()


def bcrypt_as(ident: str):
    def make(secret: bytes) -> str:
        return f"${ident}$" + bcrypt.hashpw(secret, bcrypt.gensalt(4)).decode()[4:]

    return make


MAKERS = [scrypt, argon2id, bcrypt_as("2a"), bcrypt_as("2b"), bcrypt_as("2y")]
IDS = ["scrypt", "argon2id", "2a", "2b", "2y"]


def test_a_new_hash_is_right_for_its_password_only():
    stored = hash_password(b"correct horse")
    validate(stored)
    assert stored.startswith("$scrypt$ln=14,r=8,p=1$")
    assert check(stored, b"correct horse")
    assert not check(stored, b"correct hors")


def test_equal_passwords_have_different_hashes():
    assert hash_password(b"same") != hash_password(b"same")


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
@pytest.mark.parametrize("secret", SECRETS, ids=repr)
def test_a_hash_of_any_program_is_right_for_its_password_only(make, secret):
    stored = make(secret)
    validate(stored)
    assert check(stored, secret)
    for wrong in (secret + b"x", secret[:-1] + b"?", secret + b"\0", secret.upper() + b"."):
        assert not check(stored, wrong)


@pytest.mark.parametrize("make", [scrypt, argon2id], ids=["scrypt", "argon2id"])
@pytest.mark.parametrize("secret", LONG, ids=lambda secret: repr(secret[:8]))
def test_what_bcrypt_cannot_have_others_can(make, secret):
    assert check(make(secret), secret)
    assert not check(make(secret), secret[:-1])


@pytest.mark.parametrize("secret", [b"p" * 73, b"p" * 255, b"\xff" * 255], ids=len)
def test_more_than_bcrypt_can_have_is_a_failure(secret):
    """bcrypt itself would raise, and older ones would look at 72 octets only."""
    assert not check(bcrypt_as("2b")(secret[:72]), secret)


@pytest.mark.parametrize("alias", [b"x\0x", b"x\0x\0x", b"x\0"])
def test_bcrypt_does_not_take_a_password_repeated_behind_a_nul(alias):
    stored = bcrypt_as("2b")(b"x")
    assert check(stored, b"x")
    assert not check(stored, alias)


def test_a_new_password_has_no_nul():
    with pytest.raises(ValueError, match="NUL"):
        hash_password(b"x\0")


def test_scrypt_of_the_rfc():
    """RFC 7914 section 12, third vector: an oracle that is not this program."""
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    stored = f"$scrypt$ln=14,r=8,p=1${text(b'SodiumChloride')}${text(digest)}"
    validate(stored)
    assert check(stored, b"pleaseletmein")
    assert not check(stored, b"pleaseletmeout")


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ("", "must be"),
        ("secret", "must be"),
        ("$", "must be"),
        ("$$", "must be"),
        ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA"),
        ("{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "LDAP"),
        ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "MD5"),
        ("$1$abc$HqJZimcKQFAMYayBlzkrA/", "MD5"),
        ("$5$rounds=1000$abc$xyz", "SHA-256"),
        ("$6$abc$xyz", "SHA-512"),
        ("$2x$04$" + BCRYPT[7:], "bcrypt"),
        (f"$argon2i$v=19$m=8,t=1,p=1${SALT}${DIGEST}", "argon2i"),
        (f"$SCRYPT$ln=4,r=1,p=1${SALT}${DIGEST}", "must be"),
    ],
)
def test_unknown_scheme(stored, told):
    with pytest.raises(ValueError) as refused:
        validate(stored)
    assert told in str(refused.value)
    assert "must be $scrypt$" in str(refused.value)
    for part in stored.split("$"):
        assert len(part) < 8 or part not in str(refused.value)


@pytest.mark.parametrize(
    "stored",
    [
        "$scrypt$",
        f"$scrypt$ln=4,r=1,p=1${SALT}$",
        f"$scrypt$ln=4,r=1,p=1${SALT}",
        f"$scrypt$ln=4,r=1${SALT}${DIGEST}",
        f"$scrypt$r=1,ln=4,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST}$",
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST}=",
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST}\n",
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST[:-1]}Z",  # bits that are no octet
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST}aa",
        f"$scrypt$ln=-4,r=1,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=\u0664,r=1,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=4,r=1,p=1${SALT}${DIGEST[:10]}",
        f"$scrypt$ln=4,r=1,p=1$c2Fs${DIGEST}",
        f"$scrypt$ln=4,r=1,p=1${SALT}${'QUJD' * 100}",
        f"$argon2id$m=8,t=1,p=1${SALT}${DIGEST}",
        f"$argon2id$v=16$m=8,t=1,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=1,p=1${SALT}${DIGEST[:-1]}Z",
        "$2b$",
        BCRYPT[:-1],
        BCRYPT + "a",
        BCRYPT.replace("." * 22, "." * 21 + "z"),
        BCRYPT.replace("04", "4"),
        BCRYPT.replace("04", "03"),
    ],
)
def test_a_mistyped_hash_is_refused_and_not_repeated(stored):
    with pytest.raises(ValueError) as refused:
        validate(stored)
    assert DIGEST[:8] not in str(refused.value)


@pytest.mark.parametrize(
    "stored",
    [
        # More than 64 MiB.
        f"$scrypt$ln=17,r=8,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=30,r=8,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=63,r=1,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=999,r=1,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=1,r=999999999,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=65537,t=1,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=999999999,t=1,p=1${SALT}${DIGEST}",
        # Seconds.
        f"$scrypt$ln=14,r=8,p=9${SALT}${DIGEST}",
        f"$scrypt$ln=1,r=1,p=999999999${SALT}${DIGEST}",
        f"$argon2id$v=19$m=65536,t=17,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=999999999,p=1${SALT}${DIGEST}",
        # Seconds, though there is next to nothing to do in each lane or pass.
        f"$scrypt$ln=1,r=1,p=524288${SALT}${DIGEST}",
        f"$scrypt$ln=4,r=1,p=17${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=131072,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=128,t=65,p=16${SALT}${DIGEST}",
        BCRYPT.replace("04", "15"),
        BCRYPT.replace("04", "31"),
        BCRYPT.replace("04", "99"),
        # Nothing at all.
        f"$scrypt$ln=0,r=8,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=4,r=0,p=1${SALT}${DIGEST}",
        f"$scrypt$ln=4,r=1,p=0${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=0,p=1${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=1,p=0${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8,t=1,p=2${SALT}${DIGEST}",
        f"$argon2id$v=19$m=8000,t=1,p=1000${SALT}${DIGEST}",
    ],
)
def test_what_would_hang_the_server_is_refused(stored):
    with pytest.raises(ValueError, match=r"must be|zero"):
        validate(stored)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(
            "$scrypt$ln=16,r=8,p=1$AAECAwQFBgcICQoLDA0ODw"
            "$AEdilbUUghuzO9l/XjztzHn0E0plniwgnETbi2/m6IM",
            id="passlib",
        ),
        pytest.param(
            "$scrypt$ln=14,r=8,p=5$AAECAwQFBgcICQoLDA0ODw"
            "$1G5RfCzjKRcC/LgE3RJJUhGgvovUaGPhRY2m55Tfpi4",
            id="OWASP, scrypt",
        ),
        pytest.param(
            "$argon2id$v=19$m=65536,t=3,p=4$T4Cf9DEv1hzxOAX5VZcIEg"
            "$H5sJeYVr84JbWtnmkERBCyVhgPDtChtBJzOhsPt7veI",
            id="argon2-cffi",
        ),
        pytest.param(
            "$argon2id$v=19$m=19456,t=2,p=1$Q50rAZixpkXScxX8qC1Zzw"
            "$5dXrrhZJ3VIlh7/9frdC0Rl/Cxp6V43mpoauNbAfsJE",
            id="OWASP, argon2id",
        ),
        pytest.param("$2y$05$9c/Eo5bDXQv6NFCmW1Pew.FzRwsxRgGlkUW8pFZrUEPp97Hgrs/d2", id="htpasswd"),
        pytest.param("$2b$12$1pwrb8yTMEO.yhKS57U7YeSfIbr.ZGcBmf5udCfWuSbjUZSs69pMK", id="bcrypt"),
    ],
)
def test_what_other_programs_make_is_accepted(stored):
    """With the parameters that each of them, or who gives advice, takes by itself."""
    validate(stored)
    assert check(stored, b"correct horse")
    assert not check(stored, b"correct hors")


@pytest.mark.parametrize(("r", "greatest"), [(1, 15), (2, 18), (8, 16)])
def test_scrypt_that_openssl_would_refuse_at_every_login(r, greatest):
    """RFC 7914 section 2; with r=2 and more, memory and time end earlier."""
    stored = f"$scrypt$ln={greatest},r={r},p=1${SALT}${DIGEST}"
    validate(stored)
    assert not check(stored, b"wrong")
    with pytest.raises(ValueError, match="must be") as refused:
        validate(stored.replace(f"ln={greatest}", f"ln={greatest + 1}"))
    assert ("16 * r" in str(refused.value)) is (r == 1)


@pytest.mark.parametrize(
    ("module", "stored", "advice"),
    [
        ("argon2", argon2id(b"x"), "pip install argon2-cffi"),
        ("bcrypt", BCRYPT, "pip install bcrypt"),
    ],
)
def test_missing_extra_is_named(monkeypatch, module, stored, advice):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as refused:
        validate(stored)
    assert advice in str(refused.value)
    validate(scrypt(b"x"))  # which needs none


def test_cost_tells_what_takes_equally_long():
    assert cost(scrypt(b"a")) == cost(scrypt(b"b"))
    costs = {cost(make(b"a")) for make in (scrypt, argon2id, bcrypt_as("2b"))}
    assert len(costs) == 3
    assert all(costs)
    assert cost(BCRYPT) != cost(BCRYPT.replace("04", "05"))


@given(st.text(max_size=100))
def test_any_text_is_judged_in_words(stored):
    with pytest.raises(ValueError):
        validate(stored)


@given(
    stored=st.sampled_from([scrypt(b"secret"), argon2id(b"secret"), bcrypt_as("2b")(b"secret")]),
    place=st.integers(8, 90),
    put=st.sampled_from("$=,+/.AZaz19\n\u00e4"),
)
def test_what_is_accepted_can_be_checked(stored, place, put):
    """A hash with one character changed is refused in words, or can be asked about."""
    changed = stored[:place] + put + stored[place + 1 :]
    try:
        validate(changed)
    except ValueError:
        assert changed != stored
    else:
        assert check(changed, b"secret") is (changed == stored)
