"""From flags to a Config: which of them say the same thing, where a password comes from.

What a Config may hold is decided there (config.py); here it gets the name of the flag
that a person has typed. It must not know what becomes of it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import stat
from collections.abc import Sequence
from typing import Any

from fastsocks import jsocks, users_file
from fastsocks.config import Config, is_credential, is_port, parse_listener
from fastsocks.errors import ConfigError
from fastsocks.flow import endpoint
from fastsocks.literals import is_literal

LOGIN_SOURCES = "-P, --password-file or FASTSOCKS_PASSWORD"
# -P alone, or last in a row of flags, as in -qP.
PASSWORD_FLAG = re.compile(rb"-q*P")
# What Config says of other fields, as it is said on the command line.
AS_FLAGS = {"open=True": "--open", "allow_bind=True": "--allow-bind", "udp=False": "--no-udp"}


def to_config(options: argparse.Namespace, migrated: dict[str, Any]) -> Config:
    """Raises ConfigError naming the flag. ``migrated`` are settings from elsewhere,
    for those that have no flag or none given."""
    given = {
        name: value for name, value in vars(options).items() if name in Config.__dataclass_fields__
    }
    settings: dict[str, Any] = migrated | given
    settings["ident"] = [*given.get("ident", ()), *migrated.get("ident", ())]
    password, source = read_password(options)
    if (options.user is None) != (password is None):
        missing = "-u USER" if options.user is None else f"a password ({LOGIN_SOURCES})"
        raise ConfigError(f"user and password belong together: {missing} is missing")
    if options.user is not None and password is not None:
        for flag, text in (("-u", options.user), (source, password)):
            if not is_credential(text):
                raise ConfigError(f"{flag}: must have 1 to 255 octets of UTF-8 (RFC 1929)")
        settings["users"] = {options.user: password}
    settings["listen"] = listeners(
        options, given.get("listen"), migrated.get("listen", Config().listen)
    )
    return Config(**settings)


def warnings_of(options: argparse.Namespace, config: Config) -> list[str]:
    """What is no error, but may not be what was meant."""
    warnings = []
    if options.jsocks and not config.allows_all:
        warnings.append(jsocks.REACHES_LESS)
    if "FASTSOCKS_PASSWORD" in os.environ and not config.login_needed:
        warnings.append("FASTSOCKS_PASSWORD is set, but without -u USER nobody has to log in")
    with contextlib.suppress(OSError, TypeError):
        status = os.stat(options.password_file)
        if stat.S_ISREG(status.st_mode) and (how := users_file.open_to_others(status)):
            warnings.append(users_file.too_open("--password-file", options.password_file, how))
    return warnings


def listeners(
    options: argparse.Namespace, given: list[str] | None, default: Sequence[str]
) -> Sequence[str]:
    if options.host is None and options.port is None:
        return given or default
    if given:
        raise ConfigError("--listen and -i/-p say the same thing: use one of them")
    # Of the one listener there would be, what is given replaces its part.
    where, number = parse_listener(default[0])
    host = where if options.host is None else options.host
    port = str(number) if options.port is None else options.port
    if not (host == "localhost" or is_literal(host)):
        raise ConfigError(f"-i {host}: must be an IPv4 or IPv6 address, without brackets")
    if not is_port(port):
        raise ConfigError(f"-p {port}: must be a port from 0 to 65535")
    return [endpoint(host, int(port))]


def read_password(options: argparse.Namespace) -> tuple[str | None, str]:
    """(password, where it came from): argv, a file, or the environment."""
    if options.passwords:
        for given in options.passwords:
            wipe_from_argv(given)
        if options.password_file is not None:
            raise ConfigError("-P and --password-file say the same thing: use one of them")
        return options.passwords[-1], "-P"
    if options.password_file is not None:
        try:
            # What an editor of Windows puts in front is no part of the password.
            with open(options.password_file, encoding="utf-8-sig") as file:
                return file.readline().rstrip("\r\n"), f"--password-file {options.password_file}"
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"--password-file {options.password_file}: {reason}") from None
    if options.user is not None:
        return os.environ.pop("FASTSOCKS_PASSWORD", None), "FASTSOCKS_PASSWORD"
    return None, ""


def wipe_from_argv(secret: str) -> None:
    """Overwrites the password in this process's own argument area, which ``ps`` shows.

    The kernel says where that area is (fields 48 and 49 of /proc/self/stat). Where
    it does not, nothing is done: it is a courtesy, not a protection.
    """
    wanted = os.fsencode(secret)
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        before = b""
        for argument in ctypes.string_at(start, end - start).split(b"\0"):
            flag = argument.removesuffix(wanted) or before
            if argument.endswith(wanted) and PASSWORD_FLAG.fullmatch(flag):
                ctypes.memset(start + len(argument) - len(wanted), ord("*"), len(wanted))
            start += len(argument) + 1
            before = argument


def flag_named(message: str) -> str:
    """Config speaks of its fields; on the command line they are flags."""
    field, _, rest = message.partition(" ")
    colon = ":" if field.endswith(":") else ""
    field = field.removesuffix(":")
    if not (field.isidentifier() and field in Config.__dataclass_fields__):
        return message
    flag = {"source": "-b", "users_file": "--users"}.get(field, f"--{field.replace('_', '-')}")
    for word, as_flag in AS_FLAGS.items():
        rest = rest.replace(word, as_flag)
    return f"{flag}{colon} {rest}"
