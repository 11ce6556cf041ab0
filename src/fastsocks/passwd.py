"""fastsocks passwd FILE USER: adds a user to a users file, changes or removes one.

The password is asked for, or is the first line of standard input where that is no
terminal. It is never an argument: everyone on the machine may read those.

Exit status: 0 done, 1 the file could not be written, 2 a wrong argument, password or
file. The file is as it was unless the status is 0. It must not know how a hash or a line
of the file is written.
"""

from __future__ import annotations

import getpass
import sys
import warnings
from collections.abc import Sequence

from fastsocks import users_file
from fastsocks.arguments import Parser, tell
from fastsocks.errors import ConfigError
from fastsocks.passwords import hash_password

PASSWORD_OCTETS = 255  # RFC 1929
NOT_GIVEN = "no password given; nothing is changed"


def main(argv: Sequence[str]) -> int:
    options = build_parser().parse(argv)
    try:
        users_file.check_name(options.user)
        done = change(options.file, options.user, options.delete)
    except ValueError as error:
        tell(f"fastsocks passwd: {error}", sys.stderr)
        return 2
    except OSError as error:
        tell(f"fastsocks passwd: {options.file}: {error.strerror or error}", sys.stderr)
        return 1
    tell(f"{options.user}: {done}", sys.stdout)
    warn_of_the_rest(options.file)
    return 0


def build_parser() -> Parser:
    parser = Parser(
        prog="fastsocks passwd",
        description="Adds a user to a users file (--users of fastsocks) or changes their password,"
        " which is asked for, or read from the first line of standard input. A running fastsocks"
        " takes the change over by itself.",
        allow_abbrev=False,
    )
    parser.too_many = (
        "only FILE and USER are arguments; the password is asked for, or read from standard input"
    )
    parser.add_argument("file", metavar="FILE", help="made if there is none, for its owner only")
    parser.add_argument("user", metavar="USER", help="1 to 255 octets of UTF-8, without a colon")
    parser.add_argument("--delete", action="store_true", help="remove the user")
    return parser


def change(file: str, user: str, delete: bool) -> str:
    """What was done. Raises ValueError in words for people, and OSError."""
    if delete:
        if not users_file.remove(file, user):
            raise ValueError(f"{file} has no user {user!r}")
        return f"removed from {file}"
    users_file.check_place(file)
    new = users_file.put(file, user, hash_password(ask(user)))
    return f"added to {file}" if new else f"has a new password in {file}"


def ask(user: str) -> bytes:
    """The new password, from the terminal (twice) or the first line of standard input."""
    if sys.stdin.isatty():
        secret = prompt(f"New password for {user}: ")
        if secret != prompt("The same again: "):
            raise ValueError("the two passwords differ")
    else:
        try:
            secret = sys.stdin.buffer.readline(PASSWORD_OCTETS + 3).rstrip(b"\r\n")
        except KeyboardInterrupt:
            raise ValueError(NOT_GIVEN) from None
    if not secret:
        raise ValueError("no password given; must have 1 to 255 octets")
    if len(secret) > PASSWORD_OCTETS:
        raise ValueError("the password is too long; must have 1 to 255 octets (RFC 1929)")
    return secret


def prompt(text: str) -> bytes:
    with warnings.catch_warnings():
        # It would show what is typed.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(text).encode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            raise ValueError("the password must be text in this terminal's encoding") from None
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            raise ValueError(NOT_GIVEN) from None
        except getpass.GetPassWarning:
            raise ValueError("this terminal would show the password; use a pipe") from None


def warn_of_the_rest(file: str) -> None:
    """Other lines are left as they are; one that the server refuses is better known now."""
    try:
        users_file.read(file)
    except ConfigError as error:
        tell(f"fastsocks passwd: done, but the server will refuse {error}", sys.stderr)
