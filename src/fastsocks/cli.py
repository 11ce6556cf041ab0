"""The command line: argv to Config, a loop to run on, signals to stop by.

Exit status: 0 stopped as asked, 1 could not run, 2 was asked for something that
makes no sense. Bad input ends in one line, never in a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastsocks import jsocks, passwd
from fastsocks._version import __version__
from fastsocks.arguments import Parser
from fastsocks.config import (
    COUNT_MAX,
    ENGINES,
    PIPE_SIZE_MAX,
    PIPE_SIZE_MIN,
    RELAYS,
    SECONDS_MAX,
    THREADS_MAX,
    Config,
    is_credential,
    is_literal,
    is_port,
)
from fastsocks.errors import ConfigError
from fastsocks.flow import endpoint
from fastsocks.server import Server

LOG_LEVELS = ("debug", "info", "warning", "error")
SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

LOGIN_SOURCES = "-P, --password-file or FASTSOCKS_PASSWORD"
# -P alone, or last in a row of flags, as in -qP.
PASSWORD_FLAG = re.compile(rb"-q*P")

N = TypeVar("N", int, float)

log = logging.getLogger("fastsocks")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["passwd"]:
        return passwd.main(argv[1:])
    parser = build_parser()
    options = parser.parse_args(argv)
    migrated = jsocks.Jsocks({}, [])
    try:
        if options.jsocks:
            migrated = jsocks.load(options.jsocks)
            # As defaults, so that a flag that is given counts more.
            parser.set_defaults(**{**migrated.settings, "listen": None, "ident": []})
            options = parser.parse_args(argv)
        config = to_config(options, migrated.settings)
    except ConfigError as error:
        parser.error(flag_named(str(error)))
    logging.basicConfig(
        level=logging.ERROR if options.quiet else options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for warning in migrated.warnings:
        log.warning("%s", warning)
    raise_descriptor_limit()
    # What is imported by now stays: no collection need look at it again.
    gc.freeze()
    factory, loop_name = choose_loop()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(config, loop_name))
    except ConfigError as error:
        parser.error(flag_named(str(error)))
    except OSError as error:
        print(f"fastsocks: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def serve(config: Config, loop_name: str) -> None:
    """Until SIGINT or SIGTERM; a second one ends the grace period."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    server = Server(config)
    server.start()
    if config.users_file is not None:
        loop.add_signal_handler(signal.SIGHUP, server.reload)
    announce(server, loop_name)
    await stop.wait()
    log.info("stopping: %d sessions have %g s to finish", server.sessions, config.grace)
    stopping = asyncio.ensure_future(server.stop())
    hurrying = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await server.stop(0)


def announce(server: Server, loop_name: str) -> None:
    """One line for people and for programs that wait for it. A reader who has
    gone away is no reason to stop."""
    where = ", ".join(endpoint(*address) for address in server.addresses)
    login = "USER:PASSWORD@" if server.config.login_needed else ""
    example = f"curl -x socks5h://{login}{endpoint(*server.addresses[0])} https://example.org/"
    with contextlib.suppress(OSError):
        print(
            f"fastsocks listening on {where} (loop {loop_name}, {server.describe()});"
            f" try: {example}",
            flush=True,
        )


def choose_loop() -> tuple[Callable[[], asyncio.AbstractEventLoop], str]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop, "asyncio"
    return uvloop.new_event_loop, "uvloop"


def raise_descriptor_limit() -> None:
    """To what this user may have: the default of 1,024 is for select(), and a
    session takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# -- flags -----------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fastsocks",
        description="A SOCKS4, SOCKS4a and SOCKS5 proxy server.",
        epilog="Without flags it serves 127.0.0.1:1080. Times are in seconds, 0 means no limit."
        " 'fastsocks passwd FILE USER' adds a user to the FILE of --users, or changes his"
        " password.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="where to listen; may be given again; [::1]:1080 for IPv6 (127.0.0.1:1080)",
    )
    add("-i", dest="host", metavar="HOST", help="listen on this address, as with microsocks")
    add("-p", dest="port", metavar="PORT", help="listen on this port, as with microsocks")
    add("-u", dest="user", metavar="USER", help="the user that clients must log in as")
    add(
        "-P",
        dest="password",
        metavar="PASSWORD",
        help="his password; others on this machine may see it before it is wiped from the"
        " process list, so rather use --password-file or FASTSOCKS_PASSWORD",
    )
    add("--password-file", metavar="FILE", help="read the password from the first line of FILE")
    add(
        "--users",
        dest="users_file",
        metavar="FILE",
        help="who may log in: NAME:HASH a line, as made by 'fastsocks passwd' or 'htpasswd -B';"
        " read again when it changes, and at SIGHUP",
    )
    add(
        "--strict-methods",
        action="store_true",
        help="without users, refuse a client that offers nothing but user/password (it is let in)",
    )
    add(
        "-b",
        dest="source",
        metavar="ADDRESS",
        action="append",
        help="connect to remotes from this address; once for IPv4, once for IPv6",
    )
    add(
        "--prefer",
        metavar="FAMILY",
        default="",
        help="of a name's addresses: ipv4 or ipv6 first, ipv4-only or ipv6-only"
        " (as the system orders them)",
    )
    add(
        "--allow",
        metavar="RANGE",
        action="append",
        default=[],
        help="let clients that are not on loopback reach this network (10.1.0.0/16) or kind of"
        " address (private, loopback, ... or all), which they may not; may be given again",
    )
    add("--allow-bind", action="store_true", help="offer BIND, in which the proxy listens")
    add(
        "--bind-anyone",
        action="store_true",
        help="let a client that names no peer in BIND have whoever connects",
    )
    add(
        "--bind-timeout",
        metavar="S",
        type=seconds,
        default=180.0,
        help="for the peer of a BIND to connect (180)",
    )
    add("--no-udp", dest="udp", action="store_false", help="do not offer UDP ASSOCIATE")
    add(
        "--udp-ports",
        metavar="A-B",
        type=port_range,
        help="where clients send their datagrams to (any free port)",
    )
    add(
        "--udp-address",
        metavar="ADDRESS",
        help="tell clients to send datagrams to this address, as behind NAT"
        " (the one they have connected to)",
    )
    add(
        "--udp-full-cone",
        action="store_true",
        help="pass on datagrams from anybody, not only from where the client has sent to",
    )
    add(
        "--udp-timeout",
        metavar="S",
        type=seconds,
        default=300.0,
        help="without a datagram either way (300)",
    )
    add(
        "--udp-per-client",
        metavar="N",
        type=whole,
        default=64,
        help="UDP associations that one client address may have at once (64)",
    )
    add("-q", dest="quiet", action="store_true", help="log errors only")
    add(
        "--open",
        action="store_true",
        help="allow to listen beyond loopback without a user: an open proxy",
    )
    add("--engine", metavar="NAME", default="auto", help=f"{', '.join(ENGINES)} (auto)")
    add(
        "--relay",
        metavar="HOW",
        default="auto",
        help=f"{', '.join(RELAYS)} (auto: copy, then splice what streams)",
    )
    add(
        "--relay-threads",
        metavar="N",
        type=thread_count,
        default=1,
        help="threads that relay; auto for one a core; 0 to relay on the loop's thread (1)",
    )
    add(
        "--pipe-size",
        metavar="SIZE",
        type=size,
        default=1 << 20,
        help="octets asked for per pipe, with k or m (1m)",
    )
    add(
        "--max-pipes",
        metavar="N",
        type=whole,
        help="pipes held at once; beyond that the relay copies (half of the kernel's limit"
        " for one user, at most 64)",
    )
    add(
        "--handshake-timeout",
        metavar="S",
        type=seconds,
        default=10.0,
        help="from accept to complete request (10)",
    )
    add(
        "--connect-timeout",
        metavar="S",
        type=seconds,
        default=10.0,
        help="for resolving and connecting (10)",
    )
    add(
        "--idle-timeout",
        metavar="S",
        type=seconds,
        default=300.0,
        help="without a byte either way (300)",
    )
    add(
        "--half-closed-timeout",
        metavar="S",
        type=seconds,
        default=60.0,
        help="the same once one end has finished (60)",
    )
    add(
        "--grace",
        metavar="S",
        type=seconds,
        default=10.0,
        help="for sessions to finish when told to stop (10)",
    )
    add(
        "--max-sessions",
        metavar="N",
        type=whole,
        help="connections held at once (as many as there are descriptors for)",
    )
    add(
        "--ident",
        metavar="RANGE[=NAME;...]",
        action="append",
        default=[],
        help="serve clients from RANGE only, if given names only users that their identd"
        " (RFC 1413) calls so; may be given again, the first range with the client decides",
    )
    add(
        "--ident-timeout",
        metavar="S",
        type=seconds,
        default=3.0,
        help="for a client's identd to answer (3)",
    )
    add(
        "--jsocks",
        metavar="FILE",
        nargs="+",
        help="take settings from socks.properties files of jsocks; other flags count more",
    )
    add(
        "--log-level",
        metavar="LEVEL",
        default="info",
        choices=LOG_LEVELS,
        help=f"{', '.join(LOG_LEVELS)} (info); debug has a line for each session",
    )
    add("--version", action="version", version=f"fastsocks {__version__}")
    return parser


def to_config(options: argparse.Namespace, migrated: dict[str, Any]) -> Config:
    """Raises ConfigError naming the flag. ``migrated`` are settings from elsewhere,
    for those that have no flag or none given."""
    settings: dict[str, Any] = migrated | {
        name: getattr(options, name)
        for name in (
            "source",
            "prefer",
            "allow",
            "allow_bind",
            "bind_anyone",
            "bind_timeout",
            "udp",
            "udp_ports",
            "udp_address",
            "udp_full_cone",
            "udp_timeout",
            "udp_per_client",
            "users_file",
            "strict_methods",
            "open",
            "engine",
            "relay",
            "relay_threads",
            "pipe_size",
            "max_pipes",
            "handshake_timeout",
            "connect_timeout",
            "idle_timeout",
            "half_closed_timeout",
            "grace",
            "max_sessions",
            "ident_timeout",
        )
    }
    settings["ident"] = [*options.ident, *migrated.get("ident", ())]
    password, source = read_password(options)
    if (options.user is None) != (password is None):
        missing = "-u USER" if options.user is None else f"a password ({LOGIN_SOURCES})"
        raise ConfigError(f"user and password belong together: {missing} is missing")
    if options.user is not None and password is not None:
        for flag, text in (("-u", options.user), (source, password)):
            if not is_credential(text):
                raise ConfigError(f"{flag}: must have 1 to 255 octets of UTF-8 (RFC 1929)")
        settings["users"] = {options.user: password}
    settings["listen"] = listeners(options, migrated.get("listen", ["127.0.0.1:1080"]))
    return Config(**settings)


def listeners(options: argparse.Namespace, default: list[str]) -> list[str]:
    if options.host is None and options.port is None:
        return options.listen or default
    if options.listen:
        raise ConfigError("--listen and -i/-p say the same thing: use one of them")
    host = "127.0.0.1" if options.host is None else options.host
    port = "1080" if options.port is None else options.port
    if not (host == "localhost" or is_literal(host)):
        raise ConfigError(f"-i {host}: must be an IPv4 or IPv6 address")
    if not is_port(port):
        raise ConfigError(f"-p {port}: must be a port from 0 to 65535")
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]


def read_password(options: argparse.Namespace) -> tuple[str | None, str]:
    """(password, where it came from): argv, a file, or the environment."""
    if options.password is not None:
        wipe_from_argv(options.password)
        return options.password, "-P"
    if options.password_file is not None:
        try:
            with open(options.password_file, encoding="utf-8") as file:
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
    flag = {"source": "-b", "users_file": "--users"}.get(field, f"--{field.replace('_', '-')}")
    known = field.isidentifier() and field in Config.__dataclass_fields__
    return f"{flag} {rest}" if known else message


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds") from None
    return in_range(value, text, SECONDS_MAX)


def in_range(value: N, text: str, most: int, least: int = 0) -> N:
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text}: must be {least} to {most}")
    return value


def whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number")
    return in_range(int(text[:20]), text, COUNT_MAX)


def thread_count(text: str) -> int:
    return (os.cpu_count() or 1) if text == "auto" else in_range(whole(text), text, THREADS_MAX)


def port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and is_port(first) and is_port(last)):
        raise argparse.ArgumentTypeError(f"{text}: must be A-B, as 40000-40100")
    return int(first), int(last)


def size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not (number.isascii() and number.isdigit()) or unit not in SIZE_UNITS:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of octets, as 65536, 64k or 1m")
    return in_range(int(number[:20]) * SIZE_UNITS[unit], text, PIPE_SIZE_MAX, PIPE_SIZE_MIN)
