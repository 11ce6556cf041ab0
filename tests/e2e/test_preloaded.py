# Programs that know nothing of SOCKS, made to use it by a library that is loaded before libc:
# Dante's socksify, which also knows BIND and UDP ASSOCIATE, and proxychains. With BIND a real
# FTP client fetches in active mode, where the server connects to the client; with UDP real
# DNS clients ask a real server.
#
# That nobody went past the proxy is told by the servers: it has an address that no client has.
#
# dig is not among the DNS clients: it sends with sendmmsg(), which socksify does not replace,
# so that its datagrams reach any proxy without a SOCKS header.

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.proxies import OUTSIDE

BULK = 10 * (1 << 20)
RUN_SECONDS = 60
ADDRESS = "192.0.2.7"  # of a name that only the DNS server of these tests knows

VSFTPD = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
anon_root={directory}/root
anon_upload_enable=YES
anon_umask=022
no_anon_password=YES
write_enable=YES
connect_from_port_20=NO
port_promiscuous=YES
vsftpd_log_file={directory}/log
xferlog_enable=YES
xferlog_std_format=NO
log_ftp_protocol=YES
secure_chroot_dir={directory}/empty
seccomp_sandbox=NO
run_as_launching_user={unprivileged}
"""

SOCKSIFY = """
logoutput: stderr
resolveprotocol: fake
route {{
  from: 0.0.0.0/0 to: 0.0.0.0/0 via: {host} port = {port}
  proxyprotocol: {version}
  command: bind connect udpassociate
  method: none
}}
"""

PROXYCHAINS = """
strict_chain
quiet_mode
proxy_dns
[ProxyList]
{version} {host} {port}
"""


@dataclass(slots=True)
class FtpServer:
    port: int
    root: Path
    log_file: Path

    def url(self, path: str = "file", host: str = "127.0.0.1") -> str:
        return f"ftp://{host}:{self.port}/{path}"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def content(self) -> bytes:
        return (self.root / "file").read_bytes()

    def data_ports(self) -> list[int]:
        """Of the connections it has made to clients: every one to the proxy's address."""
        orders = re.findall(r'"(?:PORT|EPRT) ([\d,.|]+)"', self.log())
        assert orders, self.log()
        ports = []
        for order in orders:
            if "|" in order:
                _, host, port, _ = order[1:].split("|")
            else:
                *quad, high, low = order.split(",")
                host, port = ".".join(quad), str(int(high) * 256 + int(low))
            assert host == OUTSIDE, order
            ports.append(int(port))
        return ports


@pytest.fixture
def ftp(need, running_daemon) -> Iterator[FtpServer]:
    """vsftpd with a file to fetch and a directory to write to."""
    program = need("vsftpd")
    # Not below tmp_path, where the user that vsftpd serves visitors as may not look.
    with tempfile.TemporaryDirectory(prefix="vsftpd-") as name:
        directory = Path(name)
        for part in ("root/up", "empty"):
            (directory / part).mkdir(parents=True)
        (directory / "root/file").write_bytes(os.urandom(BULK))
        (directory / "root/up").chmod(0o777)
        for part in ("root", "."):  # vsftpd refuses a root that the visitor may change
            (directory / part).chmod(0o755)
        config = directory / "vsftpd.conf"

        def command(port: int) -> list[str]:
            config.write_text(
                VSFTPD.format(
                    port=port,
                    directory=directory,
                    unprivileged="NO" if os.geteuid() == 0 else "YES",
                )
            )
            return [program, str(config)]

        with running_daemon(command, directory / "output") as port:
            yield FtpServer(port, directory / "root", directory / "log")


@dataclass(slots=True)
class NameServer:
    port: int
    name: str
    log_file: Path

    def askers(self) -> set[str]:
        """Who has asked for the name."""
        log = self.log_file.read_text(errors="replace")
        return set(re.findall(rf"query\[A\] {re.escape(self.name)} from (\S+)", log))


@pytest.fixture
def dns(need, running_daemon, tmp_path) -> Iterator[NameServer]:
    program, log, name = need("dnsmasq"), tmp_path / "dnsmasq.log", "www.site.test"

    def command(port: int) -> list[str]:
        return [
            program,
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            f"--port={port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            "--log-queries",
            f"--log-facility={log}",
            "--user=",
            "--pid-file=",
            f"--address=/{name}/{ADDRESS}",
        ]

    with running_daemon(command, tmp_path / "dnsmasq.output") as port:
        yield NameServer(port, name, log)


Run = Callable[..., bytes]


def ran(command: list[str], directory: Path, environment: dict[str, str]) -> bytes:
    result = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RUN_SECONDS,
        env=environment,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout


@pytest.fixture(params=["socks_v4", "socks_v5"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def socksify(outside_proxy, need, plain_environment, tmp_path) -> Run:
    """socksify(version, *command): the output of a command that goes through the proxy."""
    wrapper = need("socksify")

    def run(version: str, *command: str) -> bytes:
        config = tmp_path / "socks.conf"
        host, port = outside_proxy.host, outside_proxy.port
        config.write_text(SOCKSIFY.format(host=host, port=port, version=version))
        # Without the second it makes direct routes to all networks of this machine.
        settings = {"SOCKS_CONF": str(config), "SOCKS_AUTOADD_LANROUTES": "no"}
        return ran(
            [wrapper, need(command[0]), *command[1:]], tmp_path, plain_environment | settings
        )

    return run


# --- BIND -----------------------------------------------------------------------------------


def test_ftp_passive(socksify, ftp, version) -> None:
    assert socksify(version, "curl", "-qsS", ftp.url()) == ftp.content()
    assert f'Client "{OUTSIDE}"' in ftp.log()


@pytest.mark.parametrize("order", ["--eprt", "--disable-eprt"])
def test_ftp_active_download(socksify, ftp, version, order) -> None:
    assert socksify(version, "curl", "-qsS", "-P", "-", order, ftp.url()) == ftp.content()
    assert len(ftp.data_ports()) == 1


def test_ftp_active_upload(socksify, ftp, version, tmp_path) -> None:
    content = os.urandom(BULK)
    (tmp_path / "content").write_bytes(content)
    socksify(version, "curl", "-qsS", "-P", "-", "-T", "content", ftp.url("up/content"))
    assert (ftp.root / "up/content").read_bytes() == content
    assert len(ftp.data_ports()) == 1


def test_ftp_active_with_the_ftp_program(socksify, ftp, version, tmp_path) -> None:
    # Two connections of the server in one session: each has a BIND of its own.
    urls = (ftp.url(), ftp.url())
    for number, url in enumerate(urls):
        socksify(version, "tnftp", "-A", "-V", "-o", f"got-{number}", url)
        assert (tmp_path / f"got-{number}").read_bytes() == ftp.content()
    assert len(set(ftp.data_ports())) == len(urls)


# --- UDP ASSOCIATE --------------------------------------------------------------------------


def test_dns_with_drill(socksify, dns) -> None:
    output = socksify("socks_v5", "drill", "@127.0.0.1", "-p", str(dns.port), dns.name)
    assert ADDRESS in output.decode()
    assert dns.askers() == {OUTSIDE}


def test_dns_with_kdig(socksify, dns) -> None:
    words = ("kdig", "+short", "+retry=0", "@127.0.0.1", "-p", str(dns.port), dns.name)
    assert socksify("socks_v5", *words).decode().split() == [ADDRESS]
    assert dns.askers() == {OUTSIDE}


# --- proxychains ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("kind", ["socks4", "socks5"])
def test_proxychains(outside_proxy, need, ftp, plain_environment, tmp_path, kind, host) -> None:
    # It speaks SOCKS4a by the name socks4, and resolves names at the proxy.
    config = tmp_path / "proxychains.conf"
    proxy = outside_proxy
    config.write_text(PROXYCHAINS.format(version=kind, host=proxy.host, port=proxy.port))
    command = [need("proxychains4"), "-f", str(config), need("curl"), "-qsS", ftp.url(host=host)]
    assert ran(command, tmp_path, plain_environment) == ftp.content()
    assert f'Client "{OUTSIDE}"' in ftp.log()
