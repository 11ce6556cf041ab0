"""The flags: what there are, what they mean, which values each takes.

docs/flags.md is made from here. It must not know what becomes of a value.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import TypeVar

from fastsocks._version import __version__
from fastsocks.arguments import Parser
from fastsocks.config import (
    COUNT_MAX,
    ENGINES,
    IDENT_SECONDS_MIN,
    PIPE_SIZE_MAX,
    PIPE_SIZE_MIN,
    RELAYS,
    SECONDS_MAX,
    THREADS_MAX,
    is_port,
)

LOG_LEVELS = ("debug", "info", "warning", "error")
SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

# What float() takes, but for "nan", "1_0", blanks and the digits of other scripts.
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)

N = TypeVar("N", int, float)


def build_parser() -> Parser:
    parser = Parser(
        prog="fastsocks",
        description="A SOCKS4, SOCKS4a and SOCKS5 proxy server.",
        epilog="Without flags it serves 127.0.0.1:1080. Times are in seconds, 0 means no limit (for"
        " --grace no time; --ident-timeout has to have one). 'fastsocks passwd FILE USER' adds a"
        " user to the FILE of --users, or changes their password.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="where to listen; may be given again; [::1]:1080 for IPv6, [::]:1080 for both"
        " (127.0.0.1:1080)",
    )
    add("-i", dest="host", metavar="HOST", help="listen on this address, as with microsocks")
    add("-p", dest="port", metavar="PORT", help="listen on this port, as with microsocks")
    add("-u", dest="user", metavar="USER", help="the user that clients must log in as")
    add(
        "-P",
        dest="passwords",
        metavar="PASSWORD",
        action="append",
        help="that user's password; others on this machine may see it before it is wiped from the"
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
        help="connect to remotes from this address, and to none of the other family; once for"
        " IPv4, once for IPv6",
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
        "--no-bind",
        dest="allow_bind",
        action="store_false",
        default=argparse.SUPPRESS,
        help="do not offer BIND, which files of --jsocks do",
    )
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
        type=one_or_more,
        default=64,
        help="UDP associations that one client may have at once (64)",
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
        help="threads that relay what lasts or streams; auto for one a core; 0 to relay all"
        " on the loop's thread (1)",
    )
    add(
        "--pipe-size",
        metavar="SIZE",
        type=size,
        default=1 << 20,
        help="octets asked for per pipe, 64k to 1g, with k, m or g (1m)",
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
        type=one_or_more,
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
        type=ident_seconds,
        default=3.0,
        help="for a client's identd to answer (3)",
    )
    add(
        "--jsocks",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="take settings from socks.properties files of jsocks, in order; may be given again,"
        " and other flags count more",
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


# -- values -----------------------------------------------------------------


def seconds(text: str, least: float = 0) -> float:
    if not NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds")
    return in_range(float(text), text, SECONDS_MAX, least)


def ident_seconds(text: str) -> float:
    return seconds(text, IDENT_SECONDS_MIN)


def in_range(value: N, text: str, most: int, least: float = 0) -> N:
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text}: must be {least} to {most}")
    return value


def whole(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {least} on")
    return in_range(int(text[:20]), text, COUNT_MAX, least)


def one_or_more(text: str) -> int:
    return whole(text, 1)


def cores() -> int:
    """That this process may use, where the system says so."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def thread_count(text: str) -> int:
    if text == "auto":
        return cores()
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text}: must be auto or a whole number")
    return in_range(whole(text), text, THREADS_MAX)


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
