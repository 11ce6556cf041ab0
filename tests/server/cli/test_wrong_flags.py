# Flags that make no sense: one line that names the flag and says what would be right, exit
# status 2, and no password in it. Never a proxy that runs with something else than was asked for.

from __future__ import annotations

import pytest

from fastsocks.config import ENGINES, RELAYS

ANYWHERE = ("--listen", "127.0.0.1:0")

SECONDS = [
    "--handshake-timeout",
    "--connect-timeout",
    "--idle-timeout",
    "--half-closed-timeout",
    "--grace",
    "--bind-timeout",
    "--udp-timeout",
]


def rows(flag: str, *values: str) -> list[pytest.param]:
    return [pytest.param(flag, value, id=f"{flag} {value[:24]}") for value in values]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *rows(
            "--listen",
            "",
            ":",
            "1080",
            "127.0.0.1",
            "127.0.0.1:",
            ":1080",
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "127.0.0.1:+1",
            "127.0.0.1: 1",
            "127.0.0.1:1e3",
            "127.0.0.1:http",
            "127.0.0.1:\u0663",
            "127.0.0.1:" + "1" * 5000,
            "300.0.0.1:1080",
            "127.1:1080",
            "0x7f000001:1080",
            "example.com:1080",
            "::1:1080",
            "[::1]",
            "[::1:1080",
            "::1]:1080",
            "[127.0.0.1:1080",
            "[:::]:1080",
            "http://127.0.0.1:1080",
            "/run/fastsocks.sock",
            "224.0.0.1:1080",
            "255.255.255.255:1080",
            "[ff02::1]:1080",
        ),
        *rows("--engine", "", "warp", "Native", "native,python", "c"),
        *rows("--relay", "", "sendfile", "COPY", "auto "),
        *rows("--relay-threads", "", "-1", "1.5", "many", "AUTO", "0x2", "1000000", "9" * 30),
        *rows("--pipe-size", "", "0", "1", "65535", "-65536", "1.5m", "1t", "m", "64 k"),
        *rows("--pipe-size", "2g", "1073741825", "9" * 30, "9" * 5000),
        *rows("--max-pipes", "", "-1", "1.5", "all", "1e3", "9" * 30),
        *rows("--max-sessions", "", "0", "-1", "1.5", "all", "9" * 30),
        *[
            row
            for flag in SECONDS
            for row in rows(flag, "", "-1", "-0.1", "soon", "10s", "nan", "inf", "-inf", "1e999")
            + rows(flag, "1_0", " 5 ", "\u0663")
        ],
        *rows("--ident", "", "=", "10.1", "10.=", "fe80::1%lo", "10.0.0.9:10.0.0.1", "a b c"),
        *rows("--ident-timeout", "0", "-1", "soon", "nan", "0.0001"),
        *rows("--jsocks", "", "/nowhere/at/all", "/"),
        *rows("--prefer", "ipv5", "IPv4", "ipv4-", "ipv4-only,ipv6", "4", "inet"),
        *rows(
            "--allow", "", "privat", "10.1", "10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/8 "
        ),
        *rows("--allow", "example.com", "private,loopback", "127.0.0.1%lo/32", "unspecified "),
        *rows("--udp-ports", "", "-", "40000", "40000-", "-40000", "0-10", "1-65536", "9-8", "a-b"),
        *rows("--udp-ports", "1-2-3", "40000:40100", " 1-2", "+1-2", "1-9" + "9" * 5000),
        *rows("--udp-address", "", "nowhere", "proxy.example.com", "127.1", "192.0.2.1:1080"),
        *rows("--udp-address", "[::1]", "192.0.2.0/24", "0.0.0.0", "::", "ff02::1", "fe80::1%lo"),
        *rows("--udp-per-client", "", "0", "-1", "1.5", "all", "9" * 30),
        *rows("--users", ""),
        *rows("--log-level", "", "loud", "INFO", "10"),
        *rows("-b", "", "nowhere", "300.1.1.1", "127.1", "127.0.0.1:80", "[::1]", "224.0.0.1"),
    ],
)
def test_bad_value(refused, flag, value):
    told = refused(f"{flag}={value}") if flag.startswith("--") else refused(flag, value)
    assert flag in told


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--listen", "127.0.0.1:http"),
        ("--engine", "warp"),
        ("--relay", "sendfile"),
        ("--relay-threads", "many"),
        ("--pipe-size", "1t"),
        ("--max-pipes", "all"),
        ("--max-sessions", "0"),
        ("--listen", "[::]:1080"),
        ("--idle-timeout", "soon"),
        ("--log-level", "loud"),
        ("-b", "nowhere"),
    ],
)
def test_the_line_repeats_the_value(fails, flag, value):
    """And a process says the same as its parts: status, and nothing on standard output."""
    told = fails(2, flag, value)
    assert flag in told
    assert value in told


@pytest.mark.parametrize(("flag", "allowed"), [("--engine", ENGINES), ("--relay", RELAYS)])
def test_the_line_says_what_would_be_right(refused, flag, allowed):
    told = refused(flag, "other")
    assert all(one in told for one in allowed)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "x"], "x"),
        (["-p", "65536"], "65536"),
        (["-p", "-1"], "-1"),
        (["-p", ""], "port"),
        (["-i", "nowhere"], "nowhere"),
        (["-i", "0x7f.1"], "0x7f.1"),
        (["-i", ""], "address"),
        (["-i", "127.0.0.1:1080"], "127.0.0.1:1080"),
        (["-p", "1080", "--listen", "127.0.0.1:1081"], "--listen"),
        (["-i", "127.0.0.1", "--listen", "127.0.0.1:1081"], "--listen"),
        # Flags that do not exist, or not like this.
        (["--frobnicate"], "--frobnicate"),
        (["-x"], "-x"),
        (["--hand", "3"], "--hand"),
        (["--Listen", "127.0.0.1:0"], "--Listen"),
        (["1080"], "unexpected argument: values follow a flag"),
        (["secret"], "unexpected argument: values follow a flag"),
        (["-u", "me", "-P", "p", "secret"], "unexpected argument: values follow a flag"),
        (["-u", "me", "--pass", "secret"], "unknown flag --pass "),
        (["-u", "me", "--password=secret"], "unknown flag --password "),
        (["-u", "me", "-secret"], "unknown flag -s "),
        (["--listen", "no\nwhere"], "no\\nwhere"),
        (["--listen"], "--listen"),
        (["--open=yes"], "--open"),
        # User and password.
        (["-u", "me"], "password"),
        (["-P", "secret"], "-u"),
        (["-u", "", "-P", "secret"], "-u"),
        (["-u", "me", "-P", ""], "-P"),
        (["-u", "u" * 256, "-P", "secret"], "-u"),
        (["-u", "me", "-P", "p" * 256], "-P"),
        (["-u", "me", "-P", "\u00e4" * 128], "-P"),
        (["-u", "me", "-P", "\udcff"], "-P"),
        (["-u", "\udcff", "-P", "secret"], "-u"),
        (["-u", "me", "--password-file", "/nowhere/at/all"], "--password-file"),
        (["-u", "me", "--password-file", "/"], "--password-file"),
        (["-u", "me", "--password-file", "/dev/null"], "password"),
        (["-u", "me", "--password-file", ""], "--password-file"),
        (["-u", "me", "-P", "secret", "--password-file", "/dev/null"], "--password-file"),
        (["-P"], "-P"),
        # What may be given once, or for each of two.
        (["-b", "192.0.2.1", "-b", "192.0.2.2"], "-b 192.0.2.2"),
        (["-b", "::1", "-b", "192.0.2.2", "-b", "::2"], "-b ::2"),
        (["-b", "192.0.2.1", "-b", "nowhere"], "-b nowhere"),
        (["--allow", "private", "--allow", "privat"], "--allow privat"),
        (["--ident", "10.", "--ident", "10.="], "--ident 10.="),
        (["--jsocks"], "--jsocks"),
        (["--users"], "--users"),
        (["--no-udp=yes"], "--no-udp"),
        (["--allow-bind=yes"], "--allow-bind"),
        (["--bind-anyone", "yes"], "unexpected argument: values follow a flag"),
        (["--udp-full-cone=1"], "--udp-full-cone"),
        (["--open=yes"], "--open: takes no value"),
        (["-1"], "unknown flag -1"),
        (["--relay-threads", "AUTO"], "must be auto or a whole number"),
        (["--listen", "127.0.0.1:1,127.0.0.1:2"], "the host must be an IPv4 or IPv6 address"),
        (["--allow", "fe80::%lo/64"], "must be a network such as"),
        # What says nothing beside, or without, another.
        (["--bind-anyone"], "--bind-anyone: has no effect without --allow-bind"),
        (["--no-udp", "--udp-ports", "7-9"], "--udp-ports: has no effect with --no-udp"),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, list) else "",
)
def test_bad_argv(refused, arguments, named):
    told = refused(*arguments)
    assert named in told
    assert "secret" not in told


def test_no_password_is_told(refused):
    told = refused("-u", "me", "-P", "hunter2" * 40)
    assert "hunter2" not in told


def test_empty_password_in_the_environment(fails):
    assert "password" in fails(2, *ANYWHERE, "-u", "me", FASTSOCKS_PASSWORD="").lower()


def test_arguments_that_are_no_text(fails):
    assert "-P" in fails(2, *ANYWHERE, "-u", "me", "-P", b"\xff")


@pytest.mark.parametrize("more", [["-u", "me", "-P", "x"], ["--ident", "10."], ["--open"]])
def test_listener_that_is_wrong_where_it_need_not_be_on_loopback(refused, more):
    assert "--listen" in refused("--listen", "127.0.0.1:http", *more)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "0.0.0.0:0"],
        ["--listen", "[::]:0"],
        ["--listen", "192.0.2.1:1080"],
        ["--listen", "[2001:db8::1]:1080"],
        ["--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"],
        ["--listen", "[::ffff:0.0.0.0]:0"],
        ["-i", "0.0.0.0", "-p", "0"],
        ["-i", "::", "-p", "0"],
    ],
    ids=" ".join,
)
def test_beyond_loopback_without_a_user(refused, arguments):
    told = refused(*arguments)
    assert "--open" in told
    assert "user" in told
