# The command line as its users have it: every flag, the line that is printed when the
# proxy is ready, and where its password comes from and may be seen.

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from fastsocks import __version__, cli, flags

SECRET = "s3cret-w0rd"
FLAGS = Path(__file__).resolve().parents[3] / "docs" / "flags.md"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--relay", "auto"],
        ["--relay", "copy"],
        ["--relay", "splice"],
        ["--relay-threads", "0"],
        ["--relay-threads", "2"],
        ["--relay-threads", "auto"],
        ["--pipe-size", "65536", "--max-pipes", "3"],
        ["--pipe-size", "256k", "--max-pipes", "0"],
        ["--pipe-size", "1M"],
        ["--handshake-timeout", "2.5", "--connect-timeout", "3", "--idle-timeout", "0"],
        ["--half-closed-timeout", "1e3", "--grace", "1"],
        ["--max-sessions", "10"],
        ["--log-level", "warning"],
        ["-q"],
        ["--open"],
    ],
    ids=" ".join,
)
def test_flags(start, origin, engine_name, arguments, echoes):
    proxy = start("--engine", engine_name, *arguments)
    assert echoes(proxy, origin)
    assert proxy.stop() == 0


def test_ready_line_says_it_all(start, engine_name):
    proxy = start("--engine", engine_name, "--pipe-size", "128k", "--relay", "splice")
    host, port = proxy.addresses[0]
    assert proxy.ready.startswith(f"fastsocks listening on {host}:{port} (")
    assert f"engine {engine_name}" in proxy.ready
    assert "loop uvloop" in proxy.ready
    assert f"curl -x socks5h://{host}:{port} " in proxy.ready
    if engine_name == "native":
        assert "splice" in proxy.ready
        assert "128" in proxy.ready or str(128 << 10) in proxy.ready
    else:
        assert "copy" in proxy.ready
    assert proxy.stop() == 0


def test_auto_is_an_engine_that_runs(start, origin, echoes):
    proxy = start()
    assert echoes(proxy, origin)
    assert proxy.stop() == 0


@pytest.mark.parametrize(("every", "loopback"), [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")])
def test_ready_line_has_a_command_that_works_for_every_interface_too(start, every, loopback):
    proxy = start("--listen", f"{every}:0", "--open")
    assert f" socks5h://{loopback}:{proxy.addresses[0][1]} " in proxy.ready
    assert proxy.stop() == 0


def test_several_listeners(start, origin, engine_name, echoes):
    places = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", "localhost:0"]
    proxy = start("--engine", engine_name, *places)
    assert [host for host, _ in proxy.addresses] == ["127.0.0.1", "::1", "127.0.0.1"]
    assert all(echoes(proxy, origin, which) for which in range(3))
    assert proxy.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        (["-i", "127.0.0.2", "-p", "0"], "127.0.0.2"),
        (["-p", "0"], "127.0.0.1"),
        (["-i", "::1", "-p", "0"], "::1"),
        (["-i", "0.0.0.0", "-p", "0", "--open"], "0.0.0.0"),
        (["-i", "0.0.0.0", "-p", "0", "-u", "me", "-P", SECRET], "0.0.0.0"),
        (["-p0", "-i127.0.0.1"], "127.0.0.1"),
    ],
)
def test_microsocks_flags(start, arguments, host):
    proxy = start(*arguments)
    assert proxy.addresses[0][0] == host
    proxy.connect().close()
    assert proxy.stop() == 0


def test_source_address(start, origin, echoes):
    proxy = start("-b", "127.0.0.4")
    assert echoes(proxy, origin)
    assert origin[2] == ["127.0.0.4"]
    assert proxy.stop() == 0


def test_quiet_and_verbose(start, origin, echoes):
    quiet, plain, verbose = start("-q"), start(), start("--log-level", "debug")
    for proxy in (quiet, plain, verbose):
        assert echoes(proxy, origin)
        with proxy.connect() as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(8) == b"HTTP/1.1"
        assert proxy.stop() == 0
    assert quiet.log() == ""
    assert "HTTP client" in plain.log()
    assert f"127.0.0.1:{origin[1]}" not in plain.log()
    assert f"127.0.0.1:{origin[1]}" in verbose.log()


def test_version(command, environment):
    ended = subprocess.run(command("--version"), capture_output=True, env=environment())
    assert (ended.returncode, ended.stdout) == (0, f"fastsocks {__version__}\n".encode())


def test_help_names_every_flag(command, environment):
    """In a line of its own, with what the page of all flags says of it."""
    wide = environment(COLUMNS="1000")
    ended = subprocess.run(command("--help"), capture_output=True, env=wide, text=True)
    assert ended.returncode == 0
    page = FLAGS.read_text("utf-8").partition("## fastsocks passwd")[0]
    rows = re.findall(r"^\| `(-[^` ]+).*` \| (.+) \|$", page, re.MULTILINE)
    assert 0 < len(rows) == page.count("\n| `-")
    for flag, what_it_does in rows:
        assert re.search(rf"^  {flag}[ ,]", ended.stdout, re.MULTILINE), flag
        assert what_it_does in ended.stdout, flag


# -- passwords ---------------------------------------------------------------


def test_password_from_a_file(start, origin, tmp_path, echoes):
    file = tmp_path / "password"
    file.write_bytes(f"{SECRET} \u00e4\r\nsecond line\n".encode())
    proxy = start("-u", "me", "--password-file", str(file))
    assert echoes(proxy, origin, login=(b"me", f"{SECRET} \u00e4".encode()))
    assert proxy.stop() == 0


def test_password_from_the_environment(start, origin, echoes):
    proxy = start("-u", "me", FASTSOCKS_PASSWORD=SECRET)
    assert echoes(proxy, origin, login=(b"me", SECRET.encode()))
    assert proxy.stop() == 0


def test_password_in_argv_wins(start, origin, echoes):
    proxy = start("-u", "me", "-P", SECRET, FASTSOCKS_PASSWORD="another")
    assert echoes(proxy, origin, login=(b"me", SECRET.encode()))
    assert proxy.stop() == 0


def test_environment_without_a_user_means_nothing(start, origin, echoes):
    proxy = start(FASTSOCKS_PASSWORD=SECRET)
    assert echoes(proxy, origin)
    assert proxy.stop() == 0


@pytest.mark.linux  # elsewhere it stays there
@pytest.mark.parametrize(
    "arguments",
    [
        ["-u", "me", "-P", SECRET],
        ["-u", "me", f"-P{SECRET}"],
        ["-P", SECRET, "-u", "me"],
        ["-u", f"me-{SECRET}-too", "-P", SECRET],  # the user's name may hold the password
        ["-u", "me", f"-qP{SECRET}"],
        ["-u", "me", "-P", "fast"],  # as the program's own name does
        ["-u", "me", "-P", "p\u00e4ssword"],
        # As getopt(3) has it: the value is all that follows, or the next argument.
        ["-u", "me", f"-P={SECRET}"],
        ["-u", "me", "-P", f"={SECRET}"],
        ["-u", "me", "-P", f"-{SECRET}"],
        ["-u", "me", "-P", "--open"],
        ["-u", "me", "-qP", f"-{SECRET}"],
        ["-u", "=me", "-P", SECRET],
        ["-P", "first-of-two", "-u", "me", "-P", SECRET],
    ],
    ids=" ".join,
)
def test_password_is_wiped_from_argv(start, origin, arguments, echoes):
    user = arguments[arguments.index("-u") + 1]
    last = arguments[-1]
    if last.startswith(("-P", "-qP")):
        secret = last.partition("P")[2]
    else:
        secret = SECRET if arguments[0] == "-P" and last == "me" else last
    proxy = start(*arguments)
    shown = proxy.arguments()
    assert not [one for one in shown if SECRET.encode() in one and one != user.encode()]
    assert b"first-of-two" not in shown
    assert not [one for one in shown if one in (secret.encode(), b"-P" + secret.encode())]
    assert not [one for one in shown if one.endswith(b"P" + secret.encode())]
    assert user.encode() in shown, "more than the password was wiped"
    assert b"fastsocks" in shown
    assert echoes(proxy, origin, login=(user.encode(), secret.encode()))
    assert proxy.stop() == 0


@pytest.mark.linux
def test_pipe_size_that_the_kernel_does_not_grant(start):
    """It gets what is granted, rather than what a pipe has by itself."""
    granted = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    proxy = start("--engine", "native", "--pipe-size", "1g")
    found = re.search(r" pipes of (\d+) KiB", proxy.ready)
    assert found, proxy.ready
    assert int(found[1]) << 10 >= granted
    assert proxy.stop() == 0


def test_without_uvloop(start, origin, engine_name, tmp_path, echoes, environment):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvloop'] = None\n")
    source = environment()["PYTHONPATH"]
    proxy = start("--engine", engine_name, PYTHONPATH=f"{tmp_path}{os.pathsep}{source}")
    assert "loop asyncio" in proxy.ready
    assert echoes(proxy, origin)
    assert proxy.stop() == 0


def test_jsocks_file_and_flags_that_count_more(start, origin, echoes, tmp_path):
    file = tmp_path / "socks.properties"
    file.write_text("port = 1\nhost = 192.0.2.1\nrange = 127.0.0.\nlog = -\niddleTimeout = 7000\n")
    proxy = start("--jsocks", str(file))  # with the --listen of all tests
    assert echoes(proxy, origin)
    assert f"{file}:4: log has no counterpart" in proxy.log()
    assert "--allow all" in proxy.log()
    assert proxy.stop() == 0


def test_jsocks_file_where_every_address_may_be_reached(start, tmp_path):
    """Nobody need be told how that is done."""
    file = tmp_path / "socks.properties"
    file.write_text("range = 127.0.0.\n")
    proxy = start("--jsocks", str(file), "--allow", "all")
    assert proxy.stop() == 0
    assert "--allow" not in proxy.log()


@pytest.fixture
def configured(monkeypatch):
    """``configured("--allow-bind")``: the Config that the server would be made with."""
    taken = []

    async def serve(config, loop_name):
        taken.append(config)

    def run(*arguments):
        monkeypatch.setattr(cli, "serve", serve)
        assert cli.main(arguments) == 0
        return taken.pop()

    return run


@pytest.mark.parametrize(
    ("flags", "expected"), [((), (7, 180)), (("--idle-timeout", "300"), (300, 180))]
)
def test_jsocks_settings(configured, tmp_path, flags, expected):
    """A flag counts more even where it says what is the default anyway."""
    file = tmp_path / "socks.properties"
    file.write_text("host = 127.0.0.1\nrange = 10.\niddleTimeout = 7000 # ms\n")
    config = configured("--ident", "11.", *flags, "--jsocks", str(file))
    assert (config.idle_timeout, config.udp_timeout) == expected
    assert config.listen == ["127.0.0.1:1080"]
    assert config.ident == ["11.", "10."]


@pytest.mark.parametrize(
    ("lines", "flags", "listen"),
    [
        ("host = 127.0.0.2\nport = 7", "", "127.0.0.2:7"),
        ("host = 127.0.0.2\nport = 7", "-p 0", "127.0.0.2:0"),
        ("host = 127.0.0.2\nport = 7", "-i 127.0.0.3", "127.0.0.3:7"),
        ("host = 127.0.0.2\nport = 7", "-i ::1 -p 8", "[::1]:8"),
        ("host = ::1\nport = 7", "-p 8", "[::1]:8"),
        ("host = 127.0.0.2", "-i 127.0.0.3", "127.0.0.3:1080"),
        ("port = 7", "-p 8", "0.0.0.0:8"),
    ],
)
def test_part_of_a_jsocks_listener_counts_less(configured, tmp_path, lines, flags, listen):
    file = tmp_path / "socks.properties"
    file.write_text(f"range = 10.\n{lines}\n")
    assert configured("--jsocks", str(file), *flags.split()).listen == [listen]


def test_jsocks_files_are_taken_however_they_are_given(configured, tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.properties")
        files[-1].write_text(f"host = 127.0.0.1\nrange = {number}.\nusers = user{number}\n")
    first, second, third = map(str, files)
    config = configured("--jsocks", first, second, "--jsocks", third)
    assert config.ident == ["0.=user0", "1.=user1", "2.=user2"]


@pytest.mark.parametrize(
    ("arguments", "field", "value", "default"),
    [
        ("--allow-bind", "allow_bind", True, False),
        ("--allow-bind --bind-anyone", "bind_anyone", True, False),
        ("--bind-timeout 2.5", "bind_timeout", 2.5, 180),
        ("--bind-timeout 0", "bind_timeout", 0, 180),
        ("--no-udp", "udp", False, True),
        ("--udp-ports 40000-40100", "udp_ports", (40000, 40100), None),
        ("--udp-ports 7-7", "udp_ports", (7, 7), None),
        ("--udp-address 192.0.2.1", "udp_address", "192.0.2.1", None),
        ("--udp-address 2001:db8::1", "udp_address", "2001:db8::1", None),
        ("--udp-full-cone", "udp_full_cone", True, False),
        ("--udp-timeout 7", "udp_timeout", 7, 300),
        ("--udp-per-client 3", "udp_per_client", 3, 64),
        ("--prefer ipv4", "prefer", "ipv4", ""),
        ("--prefer ipv6-only", "prefer", "ipv6-only", ""),
        ("--allow private --allow 192.0.2.0/24", "allow", ["private", "192.0.2.0/24"], ()),
        ("-b 192.0.2.1", "sources", {"ipv4": "192.0.2.1"}, {}),
        ("-b ::1 -b 192.0.2.1", "sources", {"ipv4": "192.0.2.1", "ipv6": "::1"}, {}),
        ("--users /some/file", "users_file", "/some/file", None),
        ("--strict-methods", "strict_methods", True, False),
        ("--ident 10. --ident .=me;you", "ident", ["10.", ".=me;you"], []),
        ("--ident-timeout 0.5", "ident_timeout", 0.5, 3),
        ("--engine python", "engine", "python", "auto"),
        ("--relay copy", "relay", "copy", "auto"),
        ("--relay-threads 3", "relay_threads", 3, 1),
        ("--relay-threads auto", "relay_threads", flags.cores(), 1),
        ("--no-io-uring", "io_uring", False, True),
        ("--pipe-size 128k", "pipe_size", 1 << 17, 1 << 20),
        ("--max-pipes 7", "max_pipes", 7, None),
        ("--max-sessions 9", "max_sessions", 9, None),
        ("--handshake-timeout 1.5", "handshake_timeout", 1.5, 10),
        ("--grace .5", "grace", 0.5, 10),
        ("--grace 25e-1", "grace", 2.5, 10),
        ("--connect-timeout 1.5", "connect_timeout", 1.5, 10),
        ("--idle-timeout 1.5", "idle_timeout", 1.5, 300),
        ("--half-closed-timeout 1.5", "half_closed_timeout", 1.5, 60),
        ("--grace 1.5", "grace", 1.5, 10),
    ],
)
def test_flag_reaches_the_configuration(configured, arguments, field, value, default):
    assert getattr(configured(*arguments.split()), field) == value
    assert getattr(configured(), field) == default


@pytest.mark.parametrize(
    ("soft", "refused", "raised"),
    [
        (1024, [], 1 << 60),
        (1024, [1 << 60], 10_240),
        (20_000, [1 << 60], 20_000),
        (1024, [1 << 60, 10_240], 1024),
    ],
    ids=["granted", "not the hard one", "more already", "neither"],
)
def test_limit_of_descriptors(configured, monkeypatch, soft, refused, raised):
    """To what the kernel lets one have; macOS has a hard limit that it may refuse."""
    limits = [soft, 1 << 60]

    def setrlimit(_, asked):
        if asked[0] in refused:
            raise ValueError("current limit exceeds maximum limit")
        limits[:] = asked

    monkeypatch.setattr(cli.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(cli.resource, "setrlimit", setrlimit)
    configured()
    assert limits == [raised, 1 << 60]


def test_without_any_flag(configured):
    config = configured()
    assert (config.listeners, config.users, config.open) == ([("127.0.0.1", 1080)], {}, False)


@pytest.mark.parametrize("number", [0, 7])
def test_settings_of_datagrams_reach_the_engine(configured, number):
    flags = ("--udp-timeout", str(number), "--udp-ports", "1-2", "--udp-full-cone")
    settings = configured(*flags).settings()
    assert (settings.udp_timeout, settings.udp_ports, settings.udp_full_cone) == (
        number,
        (1, 2),
        True,
    )
