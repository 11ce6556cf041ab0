# Files that make no sense, of passwords, of users, of jsocks: one line that names the file and
# where in it, exit status 2. What is in them stays there.

from __future__ import annotations

import pytest

ANYWHERE = ("--listen", "127.0.0.1:0")


def test_password_file_that_is_no_text(refused, tmp_path):
    file = tmp_path / "password"
    file.write_bytes(b"\xff\xfe secret")
    told = refused("-u", "me", "--password-file", str(file))
    assert "--password-file" in told
    assert str(file) in told


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "no such file; make one with: fastsocks passwd"),
        (b"alice\n", "line 1"),
        (b"alice:secret\n", "line 1"),
        (b"# ours\n\nalice:$scrypt$ln=4,r=1,p=1$!$!\n", "line 3"),
        (b"alice:\xff\xfe\n", "line 1"),
        (b"\0", "line 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value),
)
def test_users_file_that_is_wrong(fails, tmp_path, text, named):
    """Named with its line, before anybody is served; what is in it stays there."""
    file = tmp_path / "users"
    if text is not None:
        file.write_bytes(text)
    told = fails(2, *ANYWHERE, "--users", str(file))
    assert f"--users {file}" in told
    assert named in told
    assert "secret" not in told


def test_users_file_that_is_none(fails):
    assert "--users /: " in fails(2, *ANYWHERE, "--users", "/")


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        ("port = 1080\n", "", "range is missing"),
        ("range = 10.\nport = http\n", ":2", "port"),
        ("range = 10.\nport = 65536\n", ":2", "port"),
        ("range = 10.1\n", ":1", "range"),
        ("range = 10.\nusers = ;\n", ":2", "users"),
        ("range = 10.\niddleTimeout = soon\n", ":2", "iddleTimeout"),
        ("range = 10.\niddleTimeout = -1\n", ":2", "iddleTimeout"),
        ("range = 10.\nproxy = 192.0.2.1\n", ":2", "proxy"),
        ("Range = 10.\n", ":1", "range"),
        ("range = 10.\\u00zz\n", "", ""),
        ("\ufeffusers = me\nrange = 10.\n", ":1", "byte order mark"),
    ],
    ids=lambda value: repr(value) if value.endswith("\n") else "",
)
def test_jsocks_file_that_is_wrong(refused, tmp_path, text, line, named):
    file = tmp_path / "socks.properties"
    file.write_text(text, encoding="utf-8")
    told = refused("--jsocks", str(file))
    assert f"{file}{line}" in told
    assert named in told


def test_second_jsocks_file_that_is_wrong(refused, tmp_path):
    right, wrong = tmp_path / "right.properties", tmp_path / "wrong.properties"
    right.write_text("range = 10.\n")
    wrong.write_text("range = 10.1\n")
    assert f"{wrong}:1" in refused("--jsocks", str(right), str(wrong))


def test_host_of_a_jsocks_file_that_is_a_name(refused, tmp_path):
    file = tmp_path / "socks.properties"
    file.write_text("range = 10.\nhost = nowhere\n")
    told = refused("--jsocks", str(file))
    assert f"{file}:2: host nowhere: must be" in told
    assert "--listen" not in told
