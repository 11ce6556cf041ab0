# A proxy as a process of its own: fastsocks with either engine, or Dante, whose part is to
# show that a test is about SOCKS and not about us.
#
# Must not know: anything of fastsocks but its command line and the line it prints when ready.

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.namespaces import with_files
from support.programs import (
    READY_SECONDS,
    first_line,
    need,
    plain_environment,
    running_daemon,
    wait_until,
)

CALM_SECONDS = 30.0  # for a proxy whose clients have all gone to let go of their sockets
READY_LINE = re.compile(r"^fastsocks listening on (\S+):(\d+) ")

# Both proxies connect, listen and send from here where a test wants to tell at the server
# who came through the proxy and who past it.
OUTSIDE = "127.0.0.2"


@dataclass(slots=True)
class Proxy:
    """Any proxy: what its clients have to know."""

    name: str
    host: str
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def stderr(self) -> str:
        return self.log.read_text(errors="replace")

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=READY_SECONDS)


@dataclass(slots=True)
class Fastsocks(Proxy):
    """Ours, of which is asserted without asking: no socket left behind by its sessions,
    exit code 0 on SIGTERM, no traceback and no password in the log."""

    process: subprocess.Popen[bytes]
    secrets: tuple[str, ...]
    resting_sockets: int = 0

    def sockets(self) -> int:
        count = 0
        directory = f"/proc/{self.process.pid}/fd"
        with contextlib.suppress(FileNotFoundError):  # the process itself has gone
            for entry in os.listdir(directory):
                with contextlib.suppress(OSError):  # closed between the listing and the look
                    count += os.readlink(f"{directory}/{entry}").startswith("socket:")
        return count

    def finish(self) -> None:
        """SIGTERM to a proxy at rest, unless the test has ended it already."""
        if self.process.returncode is not None:
            return
        assert self.process.poll() is None, f"it ended by itself; its log:\n{self.stderr()}"
        wait_until(
            lambda: self.sockets() <= self.resting_sockets,
            "all sockets of sessions that are over are closed",
            CALM_SECONDS,
        )
        self.process.send_signal(signal.SIGTERM)
        self.assert_good_end()

    def assert_good_end(self) -> None:
        """The end that is expected of every proxy of these tests, once it has its signal."""
        try:
            output = self.process.communicate(timeout=READY_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            pytest.fail(f"the proxy did not end on its signal; its log:\n{self.stderr()}")
        log = self.stderr()
        assert self.process.returncode == 0, log
        for trouble in ("Traceback", "Fatal Python error", "Sanitizer"):
            assert trouble not in log, log
        for secret in self.secrets:
            assert secret not in log + output, f"a password is in the log:\n{log}"


@contextlib.contextmanager
def running_fastsocks(
    engine: str,
    log: Path,
    *options: str,
    listen: str = "127.0.0.1:0",
    environment: dict[str, str] | None = None,
    secrets: tuple[str, ...] = (),
    through: Sequence[str] = (),
) -> Iterator[Fastsocks]:
    """`through` is a command that ends in executing the one appended to it."""
    command = [*through, sys.executable, "-m", "fastsocks", "--listen", listen, "--engine", engine]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=plain_environment() | (environment or {}),
        )
    try:
        banner = first_line(process)
        ready = READY_LINE.match(banner)
        assert ready, f"no line that says ready, but {banner!r}; its log:\n{log.read_text()}"
        assert engine in banner, banner  # no engine may quietly stand in for the other
        host, port = ready[1].strip("[]"), int(ready[2])
        proxy = Fastsocks(engine, host, port, log, process, secrets)
        proxy.resting_sockets = proxy.sockets()
        yield proxy
        proxy.finish()
    finally:
        process.kill()
        process.communicate()


DANTE = """
logoutput: {log}
errorlog: {log}
internal: 127.0.0.1 port = {port}
external: {outside}
external: ::1
external.rotation: none
clientmethod: none
socksmethod: {method}
{user}
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 log: connect disconnect error }}
socks pass {{ from: 0/0 to: ::/0 log: connect disconnect error }}
socks pass {{ from: ::/0 to: 0/0 log: connect disconnect error }}
"""


def with_account(directory: Path, user: str, hashed: str) -> list[str]:
    """The start of a command line that runs the rest where the system has this user, with a
    password as crypt(3) has it."""
    passwd, shadow = directory / "passwd", directory / "shadow"
    passwd.write_text(f"{Path('/etc/passwd').read_text()}{user}:x:54321:54321::/:/bin/false\n")
    shadow.write_text(f"{user}:{hashed}:20000:0:99999:7:::\n")
    return with_files({"/etc/passwd": passwd, "/etc/shadow": shadow})


@contextlib.contextmanager
def running_dante(
    directory: Path, *, login: tuple[str, str] | None = None, outside: str = OUTSIDE
) -> Iterator[Proxy]:
    """`login` is the user that it has, and the password as crypt(3) has it; None lets everyone
    in. It asks the system for both, which is given such an account for it alone."""
    program = need("danted")
    through = with_account(directory, *login) if login else []
    config, log = directory / "danted.conf", directory / "danted.log"
    log.touch()

    def command(port: int) -> list[str]:
        user = "user.privileged: root\nuser.unprivileged: nobody" if os.geteuid() == 0 else ""
        method = "username" if login else "none"
        config.write_text(
            DANTE.format(log=log, port=port, outside=outside, method=method, user=user)
        )
        return [*through, program, "-f", str(config), "-p", str(directory / "danted.pid")]

    with running_daemon(command, directory / "output") as port:
        yield Proxy("dante", "127.0.0.1", port, log)
