# fastsocks passwd as a process: asked at a terminal or fed by a pipe, and a proxy that
# takes over what it wrote, or what htpasswd wrote.

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import bcrypt
import pytest

from support.programs import wait_until

PATIENCE = 30.0
SECRET = b"correct horse"

# Makes its standard input the terminal of the program that it becomes, as a login does; and
# a shell starts what it puts in the background with interrupts ignored.
AT_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "users"


@pytest.fixture
def passwd(command, environment, file):
    """``passwd("alice", said=b"...\\n")``: the process when it has ended."""

    def run(*arguments: str | bytes, said: bytes = b"", to: str | None = None):
        ended = subprocess.run(
            command("passwd", to or str(file), *arguments),
            input=said,
            capture_output=True,
            env=environment(),
            timeout=PATIENCE,
        )
        assert b"Traceback" not in ended.stderr
        assert not said.strip() or said.strip() not in ended.stdout + ended.stderr
        return ended

    return run


def can_log_in(proxy, user: bytes, password: bytes) -> bool:
    claim = b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password
    with proxy.connect() as client:
        client.sendall(b"\x05\x01\x02" + claim)
        told = b""
        while len(told) < 4 and (more := client.recv(4)):
            told += more
    assert told[:3] == b"\x05\x02\x01"
    return told[3] == 0


def test_adds_changes_and_removes(passwd, file):
    added = passwd("alice", said=SECRET + b"\n")
    assert (added.returncode, added.stderr) == (0, b"")
    assert added.stdout.decode() == f"alice: added to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_bytes()
    assert re.fullmatch(rb"alice:\$scrypt\$[^\s:]+\n", first)
    changed = passwd("alice", said=SECRET)  # no end of line either
    assert changed.returncode == 0
    assert b"new password" in changed.stdout
    assert file.read_bytes() != first
    assert passwd("alice", "--delete").returncode == 0
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", b"no password"),
        (b"\n", b"no password"),
        (b"\r\nsecond line\n", b"no password"),
        (b"p" * 256 + b"\n", b"too long"),
        (b"p" * 100000, b"too long"),
        (b"nul\0nul\n", b"NUL"),
    ],
    ids=["nothing", "empty", "empty with CR", "256 octets", "endless", "NUL"],
)
def test_a_password_that_cannot_be(passwd, file, said, told):
    ended = passwd("alice", said=said)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], b"USER"),
        (["a:b"], b"colon"),
        ([""], b"user name"),
        (["u" * 256], b"255"),
        ([b"\xff"], b"UTF-8"),
        (["alice", SECRET], b"the password is asked for"),
        (["alice", b"--" + SECRET], b"unknown flag --correct"),
        (["nobody", "--delete"], b"nobody"),
        (["alice", "--remove"], b"--remove"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(passwd, file, arguments, told):
    file.write_bytes(b"# ours\n")
    ended = passwd(*arguments, said=SECRET)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert b"horse" not in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert file.read_bytes() == b"# ours\n"


def test_a_file_that_cannot_be_written(passwd, tmp_path):
    for to in (str(tmp_path / "nowhere" / "users"), str(tmp_path), "/dev/null"):
        ended = passwd("alice", said=SECRET, to=to)
        assert ended.returncode == 1
        assert to.encode() in ended.stderr
        assert ended.stderr.count(b"\n") == 1


def test_asks_for_no_password_that_it_could_not_keep(command, environment, tmp_path):
    """Whoever is typing it should know before."""
    (tmp_path / "passwd").write_bytes(b"root:x:0:0:root:/root:/bin/sh\n")
    for to, status in (("nowhere/users", 1), (".", 1), ("passwd", 2)):
        asked, answer = os.pipe()
        try:
            ended = subprocess.run(
                command("passwd", str(tmp_path / to), "alice"),
                stdin=asked,  # never answered
                capture_output=True,
                env=environment(),
                timeout=PATIENCE,
            )
        finally:
            os.close(asked)
            os.close(answer)
        assert (ended.returncode, ended.stdout) == (status, b""), ended.stderr
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.linux  # for /dev/full
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_a_change_that_nobody_can_be_told_of(command, environment, file, unbuffered):
    """Full is where the words go, not where the users are."""
    file.write_bytes(b"bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n")  # which is warned of
    for redirected, heard in ((">/dev/full", 1), (">/dev/full 2>&1", 0)):
        ended = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirected}', "sh", *command("passwd", str(file), "alice")],
            input=SECRET,
            capture_output=True,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            timeout=PATIENCE,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count(b"\n") == heard
        assert b"alice:$scrypt$" in file.read_bytes()


@pytest.mark.linux  # macOS has no such names
def test_a_change_to_a_file_whose_name_is_no_text(command, environment, tmp_path):
    file = os.fsencode(tmp_path) + b"/\xff"
    ended = subprocess.run(
        command("passwd", file, "alice"),
        input=SECRET,
        capture_output=True,
        # The interpreter's own choice, for LC_ALL=C, would pass the octet on.
        env=environment(PYTHONIOENCODING="utf-8"),
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert Path(os.fsdecode(file)).read_bytes().startswith(b"alice:")


def test_standard_input_that_is_closed(command, environment, file):
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command("passwd", str(file), "alice")],
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
    )
    assert ended.returncode == 2
    assert b"no password given" in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert not file.exists()


def test_interrupt_while_it_waits_for_a_pipe(interrupted, file):
    status, told = interrupted("passwd", str(file), "alice")
    assert status == 2
    assert told == "fastsocks passwd: no password given; nothing is changed\n"
    assert not file.exists()


def test_a_file_that_is_something_else(passwd, file):
    file.write_bytes(b"root:x:0:0:root:/root:/bin/sh\n")
    ended = passwd("alice", said=SECRET)
    assert ended.returncode == 2
    assert f"users {file}, line 1: ".encode() in ended.stderr
    assert file.read_bytes() == b"root:x:0:0:root:/root:/bin/sh\n"


def test_tells_of_lines_that_the_server_will_refuse(passwd, file):
    file.write_bytes(b"bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n")
    ended = passwd("alice", said=SECRET)
    assert ended.returncode == 0
    assert b"line 1" in ended.stderr
    assert b"W6ph5" not in ended.stderr


@pytest.mark.parametrize(
    ("typed", "status", "told"),
    [
        ([SECRET, SECRET], 0, b"added to"),
        ([SECRET, b"something else"], 2, b"differ"),
        ([b"", b""], 2, b"no password"),
        ([b"\x04"], 2, b"no password"),  # end of input
        ([b"\x03"], 2, b"no password"),  # interrupt
    ],
    ids=["twice", "differing", "empty", "end of input", "interrupt"],
)
def test_asks_at_a_terminal_and_shows_nothing(
    command, environment, file, typed, status, told, is_asleep
):
    terminal, its = pty.openpty()
    words = [sys.executable, "-c", AT_A_TERMINAL, *command("passwd", str(file), "alice")]
    process = subprocess.Popen(
        words, stdin=its, stdout=its, stderr=its, env=environment(), start_new_session=True
    )
    os.close(its)
    shown, answers = b"", list(typed)
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < deadline and select.select([terminal], [], [], PATIENCE)[0]:
            if not (more := os.read(terminal, 4096)):
                break
            shown += more
            asked = shown.count(b"New password for alice: ") + shown.count(b"The same again: ")
            if len(typed) - len(answers) < asked and answers:
                answer = answers.pop(0)
                # An interrupt between prompt and read would be noticed after the read only.
                wait_until(lambda: is_asleep(process.pid), "it waits for an answer")
                os.write(terminal, answer if answer in (b"\x03", b"\x04") else answer + b"\n")
    os.close(terminal)
    assert process.wait(PATIENCE) == status, shown
    assert told in shown
    assert b"Traceback" not in shown
    assert SECRET not in shown
    assert file.exists() is (status == 0)


def test_a_running_proxy_takes_the_change_over(start, passwd, file, origin, echoes):
    passwd("alice", said=SECRET)
    proxy = start("--users", str(file))
    assert "USER:PASSWORD@" in proxy.ready
    assert echoes(proxy, origin, login=(b"alice", SECRET))
    passwd("bob", said=b"another")
    passwd("alice", "--delete")
    wait_until(lambda: not can_log_in(proxy, b"alice", SECRET), "alice is out")
    assert can_log_in(proxy, b"bob", b"another")
    assert proxy.stop() == 0


def test_sighup_reads_the_file_again(start, file, hashed):
    file.write_text(f"alice:{hashed(SECRET)}\n")
    proxy = start("--users", str(file))
    file.write_text(f"bob:{hashed(b'another')}\n# the end\n")
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "read again" in proxy.log(), "the file is read again")
    assert not can_log_in(proxy, b"alice", SECRET)
    file.write_text("alice:secret\n")
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "line 1: " in proxy.log(), "the broken file is told")
    assert can_log_in(proxy, b"bob", b"another")
    assert "alice:secret" not in proxy.log()
    assert proxy.log().count("line 1: ") == 1
    assert proxy.stop() == 0


@pytest.mark.parametrize("ident", ["2y", "2b", "2a"])
def test_a_file_of_htpasswd(start, file, origin, echoes, ident):
    """As htpasswd -B writes it."""
    stored = bcrypt.hashpw(SECRET, bcrypt.gensalt(5)).decode().replace("$2b$", f"${ident}$")
    file.write_text(f"alice:{stored}\n\n")
    proxy = start("--users", str(file))
    assert echoes(proxy, origin, login=(b"alice", SECRET))
    assert not can_log_in(proxy, b"alice", SECRET * 10)
    assert not can_log_in(proxy, b"alice", SECRET + b"\0" + SECRET)
    assert proxy.stop() == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"alice:secret\n", "line 1"),
        (b"# ours\nalice:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/\n", "line 2"),
        (b"\xff\xfe\n", "line 1"),
    ],
    ids=["missing", "no hash", "MD5", "no text"],
)
def test_a_broken_file_is_one_line_and_status_2(command, environment, file, content, told):
    if content is not None:
        file.write_bytes(content)
    ended = subprocess.run(
        command("--listen", "127.0.0.1:0", "--users", str(file)),
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"fastsocks: --users {file}")
    assert ended.stderr.count("\n") == 1
    assert told in ended.stderr
    assert "secret" not in ended.stderr
    assert "HqJZ" not in ended.stderr


def test_strict_methods(start):
    proxy = start("--strict-methods")
    with proxy.connect() as client:
        client.sendall(b"\x05\x01\x02")
        assert client.recv(2) == b"\x05\xff"
    assert proxy.stop() == 0


def test_help_tells_of_it(command, environment):
    shown = subprocess.run(
        command("--help"), capture_output=True, env=environment(COLUMNS="300"), text=True
    )
    assert "fastsocks passwd FILE USER" in shown.stdout
