"""The flags: what there are, what they mean, which values each takes.

docs/flags.md is made from here. It must not know what becomes of a value.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from fastsocks._version import __version__
from fastsocks.arguments import Parser
from fastsocks.config import ENGINES, RELAYS, Config, is_port

LOG_LEVELS = ("debug", "info", "warning", "error")
SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

# What float() takes, but for "nan", "1_0", blanks and the digits of other scripts.
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)

DEFAULTS = Config()
# Defaults of the flags that are no fields of Config.
NOT_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("host", "port", "user", "passwords", "password_file", "jsocks")),
    "quiet": False,
    "log_level": "info",
}


def build_parser() -> Parser:
    parser = Parser(
        prog="fastsocks",
        description="A SOCKS4, SOCKS4a and SOCKS5 proxy server.",
        epilog=f"Without flags it serves {', '.join(DEFAULTS.listen)}. Times are in seconds, 0"
        " means no limit (for --grace no time; --ident-timeout has to have one). 'fastsocks passwd"
        " FILE USER' adds a user to the FILE of --users, or changes their password.",
        allow_abbrev=False,
        # A setting that is not given is not there: what counts then is not decided here.
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="where to listen; repeatable; [::1]:1080 for IPv6, [::]:1080 for both (or for"
        " IPv6 alone, where an IPv4 address with that port is given as well)"
        f" ({', '.join(DEFAULTS.listen)})",
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
        " process list, so prefer --password-file or FASTSOCKS_PASSWORD",
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
        help="which of a name's addresses to use: ipv4 or ipv6 first, ipv4-only, ipv6-only"
        " (the system's order)",
    )
    add(
        "--allow",
        metavar="RANGE",
        action="append",
        help="let clients that are not on loopback reach a network (10.1.0.0/16) or kind of"
        " address (private, loopback, ...; own: this machine's; all) that is closed to them"
        " otherwise; repeatable",
    )
    add("--allow-bind", action="store_true", help="offer BIND, in which the proxy listens")
    add(
        "--no-bind",
        dest="allow_bind",
        action="store_false",
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
        help=f"wait S seconds for the peer of a BIND to connect ({DEFAULTS.bind_timeout:g})",
    )
    add("--no-udp", dest="udp", action="store_false", help="do not offer UDP ASSOCIATE")
    add(
        "--udp-ports",
        metavar="A-B",
        type=port_range,
        help="ports that clients may be told to send datagrams to (any free port)",
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
        help="end an association after S seconds without a datagram either way"
        f" ({DEFAULTS.udp_timeout:g})",
    )
    add(
        "--udp-per-client",
        metavar="N",
        type=whole,
        help=f"UDP associations that one client may have at once ({DEFAULTS.udp_per_client:g})",
    )
    add("-q", dest="quiet", action="store_true", help="log errors only")
    add(
        "--open",
        action="store_true",
        help="allow listening beyond loopback without users: an open proxy",
    )
    add("--engine", metavar="NAME", help=f"{', '.join(ENGINES)} ({DEFAULTS.engine})")
    add(
        "--relay",
        metavar="HOW",
        help=f"{', '.join(RELAYS)} ({DEFAULTS.relay}: copy, then splice what streams)",
    )
    add(
        "--relay-threads",
        metavar="N",
        type=thread_count,
        help="threads that relay what lasts or streams; auto for one a core; 0 to relay all"
        f" on the loop's thread ({DEFAULTS.relay_threads})",
    )
    add(
        "--no-io-uring",
        dest="io_uring",
        action="store_false",
        help="relay each short message by itself, also where the kernel has io_uring",
    )
    add(
        "--pipe-size",
        metavar="SIZE",
        type=size,
        help=f"octets asked for per pipe, 64k to 1g, with k, m or g ({DEFAULTS.pipe_size >> 20}m)",
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
        help=f"from accept to complete request ({DEFAULTS.handshake_timeout:g})",
    )
    add(
        "--connect-timeout",
        metavar="S",
        type=seconds,
        help=f"for resolving and connecting ({DEFAULTS.connect_timeout:g})",
    )
    add(
        "--idle-timeout",
        metavar="S",
        type=seconds,
        help=f"end a session after S seconds without a byte either way ({DEFAULTS.idle_timeout:g})",
    )
    add(
        "--half-closed-timeout",
        metavar="S",
        type=seconds,
        help=f"the same once one end has finished ({DEFAULTS.half_closed_timeout:g})",
    )
    add(
        "--grace",
        metavar="S",
        type=seconds,
        help=f"for sessions to finish when told to stop ({DEFAULTS.grace:g})",
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
        help="serve only clients from RANGE and, if names are given, only users whom their"
        " identd (RFC 1413) reports by one of them; repeatable, the first range that holds the"
        " client decides",
    )
    add(
        "--ident-timeout",
        metavar="S",
        type=seconds,
        help=f"for a client's identd to answer ({DEFAULTS.ident_timeout:g})",
    )
    add(
        "--jsocks",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="take settings from socks.properties files of jsocks, in order; repeatable; other"
        " flags count more",
    )
    add(
        "--log-level",
        metavar="LEVEL",
        choices=LOG_LEVELS,
        help=f"{', '.join(LOG_LEVELS)} ({NOT_FIELDS['log_level']});"
        " debug has a line for each session",
    )
    add("--version", action="version", version=f"fastsocks {__version__}")
    parser.set_defaults(**NOT_FIELDS)
    return parser


# -- values -----------------------------------------------------------------


# Whether there may be so many, or so few, is asked of Config.


def seconds(text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds")
    return float(text)


def whole(text: str) -> int:
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number")
    return int(text)


def is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def cores() -> int:
    """The cores this process may use, or all where the system does not say."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def thread_count(text: str) -> int:
    if text == "auto":
        return cores()
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"{text}: must be auto or a whole number")
    return int(text)


def port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and is_port(first) and is_port(last)):
        raise argparse.ArgumentTypeError(f"{text}: must be A-B, as 40000-40100")
    return int(first), int(last)


def size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not is_whole(number) or unit not in SIZE_UNITS:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of octets, as 65536, 64k or 1m")
    return int(number) * SIZE_UNITS[unit]
