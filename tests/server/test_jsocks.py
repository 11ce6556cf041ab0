# jsocks' properties files: the format as Java reads it, the keys as jsocks means them,
# and refusals where the same words would let in more than they did there.

from __future__ import annotations

import pytest

from fastsocks.config import Config
from fastsocks.errors import ConfigError
from fastsocks.jsocks import load, read


@pytest.fixture
def file(tmp_path):
    """``file("range = .")``: the path of a file with that in it."""

    def write(text):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.properties"
        path.write_text(text, encoding="latin-1", newline="")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "properties"),
    [
        ("a=b", {"a": "b"}),
        ("a : b ", {"a": "b "}),
        ("a b=c", {"a": "b=c"}),
        ("a", {"a": ""}),
        ("a==b", {"a": "=b"}),
        (" \t# no\n! no\r\n\r a = 1\r", {"a": "1"}),
        ("a = 1 # not a comment", {"a": "1 # not a comment"}),
        ("a = 1,\\\n    2,\\\r\n\t# 3", {"a": "1,2,# 3"}),
        ("a = 1\\\\\nb = 2", {"a": "1\\", "b": "2"}),
        ("a = 1\\", {"a": "1"}),
        ("\\\n# no key\n\\\n! nor this\na = 1\n\\", {"a": "1"}),
        ("a\\=\\:\\ b = \\u00e4\\t\\z", {"a=: b": "\u00e4\tz"}),
        ("a = \xe4", {"a": "\xe4"}),
        ("a = \\ud83d\\ude00\\ufeff\\uD83D\\uDE01", {"a": "\U0001f600\ufeff\U0001f601"}),
        ("a=1\na=2", {"a": "2"}),
    ],
)
def test_a_file_is_read_as_java_reads_it(file, text, properties):
    assert {key: prop.value for key, prop in read(file(text)).items()} == properties


def test_all_there_is(file):
    paths = [
        file(
            "port = 1081\nhost = 127.0.0.1\niddleTimeout = 600000   # 10 minutes\n"
            "acceptTimeout=0\nrange = 10.;\\\n  .example.com\nusers = alice;bob\n"
        ),
        file("range = ."),
    ]
    settings, warnings = load(paths)
    assert settings == {
        "listen": ["127.0.0.1:1081"],
        "idle_timeout": 600,
        "bind_timeout": 0,
        "udp_timeout": 180,
        "ident": ["10.;.example.com=alice;bob", "."],
        "allow_bind": True,
    }
    assert Config(**settings)
    assert warnings == []


def test_defaults_and_all_interfaces(file):
    settings, _ = load([file("range = 10.")])
    assert settings["listen"] == ["0.0.0.0:1080"]
    assert Config(**settings)  # the range is what keeps it from being open


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("localhost", ("127.0.0.1", 1080)),
        ("127.0.0.2 ", ("127.0.0.2", 1080)),
        ("::1", ("::1", 1080)),
    ],
)
def test_it_listens_where_host_says(file, host, listen):
    settings, _ = load([file(f"range = 10.\nhost = {host}")])
    assert Config(**settings).listeners == [listen]


def test_a_user_beyond_the_first_plane(file):
    settings, _ = load([file("range = 10.\nusers = \\ud83d\\ude00;bob")])
    assert Config(**settings).ident == ["10.=\U0001f600;bob"]


@pytest.mark.parametrize("users", ["", "\nusers = alice;bob"], ids=["anyone", "users"])
def test_everyone_from_everywhere_has_to_be_meant(file, users):
    settings, _ = load([file(f"range = .{users}")])
    with pytest.raises(ConfigError, match="open=True"):
        Config(**settings)
    assert Config(**settings, open=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("log = -", "standard error"),
        ("datagramSize = 8192", "datagramSize"),
        ("directHosts = 10.", "directHosts"),
        ("colour = red", ":2: colour"),
    ],
)
def test_a_key_that_does_nothing_here_is_told(file, line, said):
    assert said in load([file(f"range = 10.\n{line}")]).warnings[0]


def test_globals_in_a_later_file(file):
    settings, warnings = load([file("range = 10."), file("port = 9\nrange = 11.")])
    assert settings["listen"] == ["0.0.0.0:1080"]
    assert "first file only" in warnings[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "range is missing"),
        ("range =", ":1: range"),
        ("range = 10.1", "four octets"),
        ("range = 10.=x", "range"),
        ("range = 10.\nusers = ;", "nobody"),
        ("range = 10.\nUsers = alice", "is users meant"),
        ("range = 10.\nuser = alice", "is users meant"),
        ("range = 10.\nproxy = www-proxy:1080", "upstream"),
        ("range = 10.\nport = http", "port http"),
        ("range = 10.\nport = 65536", "65536"),
        ("range = 10.\nudpTimeout = soon", "udpTimeout soon"),
        ("range = 10.\nudpTimeout = -1", "-1"),
        ("range = \\u12", "hexadecimal"),
        ("range = 10.\nusers = \\ud83d", ":2: .*half of a character"),
        ("range = 10.\nusers = \\ude00\\ud83d", ":2: .*half of a character"),
        ("range = 10.\nlo\\ud83dg = x", ":2: .*half of a character"),
        ("range = 10.\nhost = myhost", ":2: host myhost: must be an IPv4"),
        ("range = 10.\nhost =", ":2: host : must be an IPv4"),
        ("range = 10.\nhost = [::1]", r":2: host \[::1\]: must be an IPv4"),
        ("range = 10.\nhost = 127.0.0.1:1080", ":2: host 127.0.0.1:1080: must be"),
    ],
)
def test_a_file_that_would_mean_something_else_here_is_refused(file, text, said):
    path = file(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load([path])
    assert path in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load([str(tmp_path / "nowhere")])
