# ssh and git through the proxy, with netcat as ssh's ProxyCommand, to a real sshd: a protocol
# that checks every byte it gets (a wrong one ends the connection with a bad MAC), and that
# talks both ways at once. sshd runs with host key, user key and configuration of its own, as
# whoever runs the tests.

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BULK = 10 * (1 << 20)
RUN_SECONDS = 60


@dataclass(slots=True)
class Account:
    """How to reach the test's sshd: everything of ssh's command line but the proxy."""

    user: str
    port: int
    command: list[str]
    netcat: str

    def ssh(self, proxy) -> list[str]:
        via = f"{shlex.quote(self.netcat)} -X 5 -x {proxy.address} %h %p"
        return [*self.command, "-o", f"ProxyCommand={via}"]


@pytest.fixture(scope="module")
def account(need, running_daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    sshd, ssh, keygen, netcat = map(need, ("sshd", "ssh", "ssh-keygen", "nc"))
    directory = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=RUN_SECONDS,
        )
    if os.geteuid() == 0:
        # Where sshd's unprivileged half lives; missing on a machine that never ran sshd.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = directory / "sshd_config"

    def command(port: int) -> list[str]:
        # StrictModes would refuse a key below a temporary directory that all may write to.
        config.write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
PidFile none
AuthorizedKeysFile {directory}/user.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
PermitUserRC no
PrintMotd no
StrictModes no
UsePAM no
""")
        return [sshd, "-D", "-e", "-f", str(config)]

    user = pwd.getpwuid(os.geteuid()).pw_name
    with running_daemon(command, directory / "sshd.log") as port:
        host_key = (directory / "host.pub").read_text()
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
        options = (
            "BatchMode=yes",
            "ControlPath=none",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            f"IdentityFile={directory}/user",
            f"UserKnownHostsFile={directory}/known_hosts",
        )
        dashes = [word for option in options for word in ("-o", option)]
        yield Account(user, port, [ssh, "-F", "none", *dashes], netcat)


@pytest.fixture
def remote_shell(proxy, account: Account, plain_environment) -> Callable[..., bytes]:
    """remote_shell(command, data): what the command, run over ssh, writes."""

    def run(command: str, data: bytes = b"") -> bytes:
        target = ["-p", str(account.port), f"{account.user}@127.0.0.1", command]
        result = subprocess.run(
            [*account.ssh(proxy), *target],
            input=data,
            capture_output=True,
            timeout=RUN_SECONDS,
            env=plain_environment,
        )
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        return result.stdout

    return run


def test_output_of_ten_megabytes(remote_shell, tmp_path) -> None:
    content = os.urandom(BULK)
    (tmp_path / "content").write_bytes(content)
    output = remote_shell(f"cat {shlex.quote(str(tmp_path / 'content'))}")
    assert hashlib.sha256(output).digest() == hashlib.sha256(content).digest()


def test_input_of_ten_megabytes(remote_shell) -> None:
    content = os.urandom(BULK)
    assert (
        remote_shell("sha256sum", content).split()[0].decode()
        == hashlib.sha256(content).hexdigest()
    )


def test_ten_megabytes_both_ways_at_once(remote_shell) -> None:
    content = os.urandom(BULK)
    assert hashlib.sha256(remote_shell("cat", content)).digest() == hashlib.sha256(content).digest()


@pytest.fixture
def git(proxy, account: Account, need, plain_environment, tmp_path) -> Callable[..., str]:
    """git(*arguments): the output of a git that goes through the proxy and has no settings."""
    program = need("git")
    environment = plain_environment | {
        "GIT_AUTHOR_EMAIL": "author@test.invalid",
        "GIT_AUTHOR_NAME": "author",
        "GIT_COMMITTER_EMAIL": "author@test.invalid",
        "GIT_COMMITTER_NAME": "author",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_SSH_COMMAND": shlex.join(account.ssh(proxy)),
        "GIT_TERMINAL_PROMPT": "0",
    }

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_SECONDS,
            env=environment,
        )
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        return result.stdout.decode().strip()

    return run


def test_git_clone_and_push(git, account: Account, tmp_path) -> None:
    origin = tmp_path / "origin"
    git("init", "-q", "--bare", "-b", "trunk", str(origin))
    git("init", "-q", "-b", "trunk", "first")
    (tmp_path / "first" / "file").write_bytes(os.urandom(BULK))
    git("-C", "first", "add", "file")
    git("-C", "first", "commit", "-q", "-m", "ten random megabytes")
    url = f"ssh://{account.user}@127.0.0.1:{account.port}{origin}"
    git("-C", "first", "push", "-q", url, "trunk")
    git("clone", "-q", url, "second")
    git("-C", "second", "fsck", "--strict")
    assert git("-C", "second", "rev-parse", "HEAD") == git("-C", "first", "rev-parse", "HEAD")
    assert (tmp_path / "second" / "file").read_bytes() == (tmp_path / "first" / "file").read_bytes()
