# curl through the proxy to a real nginx: a gigabyte in each of the four ways curl speaks
# SOCKS, up and down, many at once, with and without a user, and the errors curl reports.
#
# What arrives is judged by its SHA-256 alone. Nothing here is about speed.

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from support.system import resident_octets

MIB = 1 << 20
BIG_BLOCKS = 1024
TRANSFER_SECONDS = 90  # when a transfer counts as hung
SCHEMES = ("socks4", "socks4a", "socks5", "socks5h")
PROXY_ERROR = 97  # CURLE_PROXY: the handshake with the proxy failed


@dataclass(slots=True)
class Site:
    port: int
    root: Path
    digest: str
    size: int = BIG_BLOCKS * MIB

    def url(self, host: str = "127.0.0.1", path: str = "/big") -> str:
        return f"http://{host}:{self.port}{path}"

    def slice_digest(self, start: int, size: int) -> str:
        with (self.root / "big").open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(size)).hexdigest()


def write_big_file(path: Path) -> str:
    # Random within a block and numbered in every page, so that no two pages of the file are
    # the same and a piece that is lost, doubled or misplaced changes the digest.
    digest = hashlib.sha256()
    block = bytearray(os.urandom(MIB))
    with path.open("wb") as file:
        for number in range(BIG_BLOCKS):
            for page in range(0, MIB, 4096):
                struct.pack_into(">I", block, page, number)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def nginx_config(directory: Path, port: int, ipv6: bool) -> str:
    # Started by root, nginx would drop to a user who cannot read the test's directory.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    listen_ipv6 = f"listen [::1]:{port};" if ipv6 else ""
    scratch = "\n".join(
        f"  {module}_temp_path {directory}/temp-{module};"
        for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
worker_processes 2;
pid {directory}/pid;
{user}
events {{ worker_connections 512; }}
http {{
  access_log off;
  sendfile on;
  client_max_body_size 0;
{scratch}
  server {{
    listen 127.0.0.1:{port};
    {listen_ipv6}
    root {directory}/root;
    location /up/ {{ dav_methods PUT; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def site(
    need, running_daemon, has_ipv6: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """nginx with a file of 1 GiB at /big, and PUT allowed below /up/."""
    program = need("nginx")
    directory = tmp_path_factory.mktemp("nginx")
    root = directory / "root"
    (root / "up").mkdir(parents=True)
    config = directory / "nginx.conf"

    def command(port: int) -> list[str]:
        config.write_text(nginx_config(directory, port, has_ipv6))
        log = f"{directory}/error.log"
        return [program, "-p", str(directory), "-e", log, "-c", str(config)]

    try:
        digest = write_big_file(root / "big")
        with running_daemon(command, directory / "output") as port:
            yield Site(port, root, digest)
    finally:
        shutil.rmtree(root)  # pytest keeps the directories of three runs; not the gigabytes


@dataclass(slots=True)
class Download:
    """A running curl whose output is hashed as it comes."""

    process: subprocess.Popen[bytes]
    size: int = 0
    digest: str = ""
    errors: str = ""

    def read(self, limit: int | None = None) -> Iterator[bytes]:
        assert self.process.stdout is not None
        while limit is None or limit > 0:
            piece = self.process.stdout.read(min(MIB, limit or MIB))
            if not piece:
                return
            self.size += len(piece)
            if limit is not None:
                limit -= len(piece)
            yield piece

    def finish(self, digest: hashlib._Hash) -> Download:
        assert self.process.stderr is not None
        for piece in self.read():
            digest.update(piece)
        self.digest = digest.hexdigest()
        self.errors = self.process.stderr.read().decode(errors="replace")
        self.process.wait(TRANSFER_SECONDS)
        return self


@pytest.fixture(scope="module")
def download(need, plain_environment) -> Callable[..., contextlib.AbstractContextManager[Download]]:
    """download(proxy_url, *arguments): a curl that writes what it gets to the test."""
    program = need("curl")

    @contextlib.contextmanager
    def run(proxy_url: str, *arguments: str) -> Iterator[Download]:
        command = [program, "-q", "-sSfg", "--max-time", str(TRANSFER_SECONDS), "-x", proxy_url]
        with subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=plain_environment,
        ) as process:
            # curl's own limit should end it; this one also frees a reader when it does not.
            guard = threading.Timer(TRANSFER_SECONDS + 10, process.kill)
            guard.start()
            try:
                yield Download(process)
            finally:
                guard.cancel()
                process.kill()

    return run


@pytest.fixture(scope="module")
def fetch(download) -> Callable[..., Download]:
    """fetch(proxy_url, *arguments): the finished download."""

    def run(proxy_url: str, *arguments: str) -> Download:
        with download(proxy_url, *arguments) as running:
            return running.finish(hashlib.sha256())

    return run


def assert_whole(result: Download, site: Site) -> None:
    assert result.process.returncode == 0, result.errors
    assert result.size == site.size
    assert result.digest == site.digest


# --- a gigabyte, every way ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_download_of_a_gigabyte(proxy, site, fetch, scheme) -> None:
    assert_whole(fetch(f"{scheme}://{proxy.address}", site.url()), site)


def test_download_of_a_gigabyte_with_user_and_password(locked_proxy, site, fetch, login) -> None:
    account = f"{login.user}:{quote(login.password, safe='')}"
    assert_whole(fetch(f"socks5h://{account}@{locked_proxy.address}", site.url()), site)


@pytest.mark.parametrize("scheme", ["socks4a", "socks5h"])
def test_upload_of_a_gigabyte(proxy, site, fetch, scheme, engine) -> None:
    name = f"/up/{engine}-{scheme}"
    source = str(site.root / "big")
    result = fetch(f"{scheme}://{proxy.address}", "-T", source, site.url(path=name))
    assert result.process.returncode == 0, result.errors
    stored = Path(f"{site.root}{name}")
    try:
        with stored.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == site.digest
    finally:
        stored.unlink()


def test_reader_that_stalls_holds_up_nobody_and_loses_nothing(proxy, site, download, fetch) -> None:
    before = resident_octets(proxy.process.pid)
    with download(f"socks5h://{proxy.address}", site.url()) as slow:
        digest = hashlib.sha256()
        for piece in slow.read(MIB):
            digest.update(piece)
        # From here nothing reads: what nginx has to send fills every buffer on the way.
        quick = fetch(f"socks5h://{proxy.address}", site.url())
        assert_whole(quick, site)
        assert resident_octets(proxy.process.pid) - before < 128 * MIB
        assert_whole(slow.finish(digest), site)


def test_twenty_downloads_at_once(proxy, site, fetch) -> None:
    size = 16 * MIB

    def one(number: int) -> tuple[int, str, str]:
        start = number * size
        scheme = SCHEMES[number % len(SCHEMES)]
        window = f"{start}-{start + size - 1}"
        result = fetch(f"{scheme}://{proxy.address}", "-r", window, site.url())
        return result.process.returncode, result.digest, result.errors

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(20)))
    # Every one has a slice of its own, so that bytes of another session would show.
    assert results == [(0, site.slice_digest(number * size, size), "") for number in range(20)]


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_ipv6_target(proxy, site, fetch, ipv6, scheme) -> None:
    window = ("-r", f"0-{MIB - 1}")
    result = fetch(f"{scheme}://{proxy.address}", *window, site.url(host=f"[{ipv6}]"))
    assert (result.process.returncode, result.errors) == (0, "")
    assert result.digest == site.slice_digest(0, MIB)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proxy_on_ipv6(start_proxy, site, fetch, ipv6, scheme) -> None:
    started = start_proxy(listen=f"[{ipv6}]:0")
    for host in ("127.0.0.1", f"[{ipv6}]")[: 2 if scheme.startswith("socks5") else 1]:
        url = site.url(host=host)
        result = fetch(f"{scheme}://{started.address}", "-r", f"0-{MIB - 1}", url)
        assert (result.process.returncode, result.errors) == (0, "")
        assert result.digest == site.slice_digest(0, MIB)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_target_given_by_name(proxy, site, fetch, scheme) -> None:
    # With socks4a and socks5h the name travels and the proxy resolves it; -4 because curl
    # may find ::1 for the other two, which SOCKS4 cannot carry.
    window = ("-4", "-r", f"0-{MIB - 1}")
    result = fetch(f"{scheme}://{proxy.address}", *window, site.url(host="localhost"))
    assert (result.process.returncode, result.errors) == (0, "")
    assert result.digest == site.slice_digest(0, MIB)


# --- users ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_open_proxy_takes_a_user_it_did_not_ask_for(proxy, site, fetch, login, scheme) -> None:
    account = f"{login.user}:{quote(login.password, safe='')}"
    window = ("-r", f"0-{MIB - 1}")
    result = fetch(f"{scheme}://{account}@{proxy.address}", *window, site.url())
    assert (result.process.returncode, result.errors) == (0, "")
    assert result.digest == site.slice_digest(0, MIB)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_wrong_password_is_refused(locked_proxy, site, fetch, login, scheme) -> None:
    account = f"{login.user}:{login.wrong}"
    result = fetch(f"{scheme}://{account}@{locked_proxy.address}", site.url())
    assert (result.process.returncode, result.size) == (PROXY_ERROR, 0)
    assert "rejected" in result.errors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_locked_proxy_serves_nobody_without_a_password(
    locked_proxy, site, fetch, login, scheme
) -> None:
    # SOCKS4 has a user but no password, so with it nobody gets in at all.
    account = f"{login.user}@" if scheme.startswith("socks4") else ""
    result = fetch(f"{scheme}://{account}{locked_proxy.address}", site.url())
    assert (result.process.returncode, result.size) == (PROXY_ERROR, 0), result.errors


def test_password_from_the_environment(start_proxy, site, fetch, login) -> None:
    secrets = (login.password, login.wrong)
    environment = {"FASTSOCKS_PASSWORD": login.password}
    started = start_proxy("-u", login.user, environment=environment, secrets=secrets)
    window = ("-r", f"0-{MIB - 1}")
    for password, code in ((login.password, 0), (login.wrong, PROXY_ERROR)):
        account = f"{login.user}:{quote(password, safe='')}"
        result = fetch(f"socks5h://{account}@{started.address}", *window, site.url())
        assert result.process.returncode == code, result.errors


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "code"), [("socks4", 91), ("socks4a", 91), ("socks5", 5), ("socks5h", 5)]
)
def test_refused_port(proxy, fetch, refused_port, scheme, code) -> None:
    result = fetch(f"{scheme}://{proxy.address}", f"http://127.0.0.1:{refused_port}/")
    assert (result.process.returncode, result.size) == (PROXY_ERROR, 0)
    assert f"({code})" in result.errors


@pytest.mark.parametrize(("scheme", "codes"), [("socks4a", {91}), ("socks5h", {1, 4})])
def test_name_that_cannot_be(proxy, fetch, scheme, codes) -> None:
    # A label of 64 letters is one too long for the DNS: no resolver sends a question for it.
    # Whether that is a bad request (1) or a host that is not there (4) is the proxy's choice.
    result = fetch(f"{scheme}://{proxy.address}", f"http://{'x' * 64}.invalid/")
    assert (result.process.returncode, result.size) == (PROXY_ERROR, 0)
    assert any(f"({code})" in result.errors for code in codes), result.errors
