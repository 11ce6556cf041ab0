"""The configuration of jsocks, a SOCKS server in Java: its ``socks.properties`` files
as settings of this one. The first file has what is global; each adds one range of
clients with its users, in order.

What would silently let in more, or send traffic another way, is refused; what merely
has no counterpart is named in a warning. It must not know how a setting is used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fastsocks import ranges
from fastsocks.errors import ConfigError
from fastsocks.flow import endpoint
from fastsocks.literals import is_literal

MILLISECONDS = {
    "iddleTimeout": "idle_timeout",  # jsocks' own spelling
    "acceptTimeout": "bind_timeout",
    "udpTimeout": "udp_timeout",
}
DEFAULT_SECONDS = 180.0
WITHOUT_COUNTERPART = {
    "datagramSize": "datagrams of every size are relayed",
    "log": "fastsocks logs to standard error",
    "directHosts": "without an upstream proxy every host is reached directly",
}
KEYS = {"port", "host", "range", "users", "proxy", *MILLISECONDS, *WITHOUT_COUNTERPART}
# Misspelt, these would open the proxy or change whom it serves.
VITAL = ("users", "range", "proxy", "host")

NUMBER_MAX = 10**12
ESCAPED = re.compile(r"\\(u[0-9a-fA-F]{4}|u|.)", re.DOTALL)
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
BLANKS = " \t\f"
REACHES_LESS = (
    "jsocks let clients reach every address; here those in private and other special ranges"
    " and of this machine are for clients on loopback only, unless --allow all is given"
)
BYTE_ORDER_MARK = "\xef\xbb\xbf"  # of UTF-8, read as Latin-1


class Property(NamedTuple):
    """``place`` is FILE:LINE."""

    value: str
    place: str


class Jsocks(NamedTuple):
    """``settings`` are fields of config.Config."""

    settings: dict[str, Any]
    warnings: list[str]


def load(paths: Sequence[str]) -> Jsocks:
    """Raises ConfigError that names the file, and the line where there is one."""
    files = [(path, read(path)) for path in paths]
    warnings = [
        f"{prop.place}: {key} {why}"
        for position, (_, properties) in enumerate(files)
        for key, prop in properties.items()
        if (why := objection(key, prop, is_first=position == 0))
    ]
    _, first = files[0]
    settings: dict[str, Any] = {
        name: seconds(key, first.get(key)) for key, name in MILLISECONDS.items()
    }
    settings["listen"] = [listener(first)]
    settings["ident"] = [rule(path, properties) for path, properties in files]
    settings["allow_bind"] = True
    return Jsocks(settings, warnings)


def objection(key: str, prop: Property, *, is_first: bool) -> str | None:
    """What to warn of. Raises ConfigError for what cannot be left out."""
    if key == "proxy" and prop.value.strip(BLANKS + ";"):
        raise ConfigError(
            f"{prop.place}: proxy: there are no upstream proxies here, and going around this"
            " one would show remotes another address; remove the line to go directly"
        )
    if key not in KEYS:
        meant = difflib.get_close_matches(key.lower(), VITAL, n=1, cutoff=0.8)
        if meant:
            raise ConfigError(f"{prop.place}: {key}: is {meant[0]} meant? (case counts)")
        return "means nothing to jsocks nor to fastsocks, and is ignored"
    if key in WITHOUT_COUNTERPART:
        return f"has no counterpart and is ignored: {WITHOUT_COUNTERPART[key]}"
    if not is_first and key not in ("range", "users", "proxy"):
        return "counts in the first file only, and is ignored"
    return None


def seconds(key: str, prop: Property | None) -> float:
    """Only the first word counts: what follows is a comment in jsocks' own example."""
    words = prop.value.split() if prop else []
    if prop is None or not words:
        return DEFAULT_SECONDS
    return number(key, words[0], prop.place, NUMBER_MAX) / 1000


def listener(properties: dict[str, Property]) -> str:
    """jsocks' ranges have IPv4 addresses only, so all interfaces are those of IPv4."""
    prop, host = properties.get("port"), properties.get("host")
    port = number("port", prop.value.strip(), prop.place, 65535) if prop else 1080
    where = host.value.strip() if host else "0.0.0.0"
    if host and not (where == "localhost" or is_literal(where)):
        raise ConfigError(f"{host.place}: host {where[:40]}: must be an IPv4 or IPv6 address")
    return endpoint(where, port)


def rule(path: str, properties: dict[str, Property]) -> str:
    """As config.Config.ident has it."""
    if "range" not in properties:
        raise ConfigError(f"{path}: range is missing: the clients to serve, as in range = 192.0.2.")
    where = properties["range"]
    try:
        ranges.parse(where.value)
    except ValueError as error:
        raise ConfigError(f"{where.place}: range: {error}") from None
    if "users" not in properties:
        return where.value
    names = [name.strip() for name in properties["users"].value.split(";") if name.strip()]
    if not names:
        place = properties["users"].place
        raise ConfigError(f"{place}: users: names nobody; without the line anyone may come")
    return f"{where.value}={';'.join(names)}"


def number(key: str, text: str, place: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise ConfigError(f"{place}: {key} {text[:40]}: must be a whole number up to {most}")
    return int(text)


# -- Java's format of properties ---------------------------------------------


def read(path: str) -> dict[str, Property]:
    """As java.util.Properties: the last of two lines with one key counts."""
    try:
        with open(path, encoding="latin-1", newline="") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"--jsocks {path}: {error.strerror}") from None
    if text.startswith(BYTE_ORDER_MARK):
        raise ConfigError(
            f"{path}:1: begins with a byte order mark, which jsocks takes for a part of the"
            " first key; must be saved without one"
        )
    found = {}
    for line_number, line in logical_lines(text):
        place = f"{path}:{line_number}"
        key, value = split(line)
        found[unescape(key, place)] = Property(unescape(value, place), place)
    return found


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Without comments and blank lines; one that ends in a backslash goes on."""
    whole, began = "", 0
    for line_number, natural in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = natural.lstrip(BLANKS)
        if not whole:
            if not line or line[0] in "#!":
                continue
            began = line_number
        slashes = len(line) - len(line.rstrip("\\"))
        whole += line[:-1] if slashes % 2 else line
        if not slashes % 2:
            yield began, whole
            whole = ""
    if whole:
        yield began, whole


def split(line: str) -> tuple[str, str]:
    """The key ends at the first blank, = or : that has no backslash before it."""
    at = 0
    while at < len(line) and line[at] not in BLANKS + "=:":
        at += 2 if line[at] == "\\" else 1
    value = line[at:].lstrip(BLANKS)
    if value[:1] in ("=", ":"):
        value = value[1:].lstrip(BLANKS)
    return line[:at], value


def unescape(text: str, place: str) -> str:
    def meant(match: re.Match[str]) -> str:
        code = match[1]
        if code == "u":
            raise ConfigError(f"{place}: \\u must have four hexadecimal digits after it")
        return chr(int(code[1:], 16)) if len(code) == 5 else CONTROLS.get(code, code)

    # Java's escapes are those of UTF-16: a character beyond the first 65,536 has two.
    octets = ESCAPED.sub(meant, text).encode("utf-16-le", "surrogatepass")
    try:
        return octets.decode("utf-16-le")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{place}: \\u has half of a character; must be two, as in \\ud83d\\ude00"
        ) from None
