# PySocks and python-socks through the proxy: the two client libraries most Python programs
# use. Each way of naming the target, with and without a user, a megabyte each way with a
# half-close, and failures that must come out as the library's own error for that failure.

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

UPLOAD = os.urandom(1 << 20)
CLIENT_SECONDS = 30
KINDS = ("sync", "asyncio")  # of python-socks


@dataclass(frozen=True, slots=True)
class Way:
    """One way of asking for a target: SOCKS version, who resolves, and what is asked for."""

    version: int
    remote_names: bool
    host: str

    def __str__(self) -> str:
        return f"socks{self.version}-{'remote' if self.remote_names else 'local'}-{self.host}"


# No name is resolved locally: a library may find ::1 for localhost, where the server is not.
WAYS5 = [Way(5, False, "127.0.0.1"), Way(5, True, "127.0.0.1"), Way(5, True, "localhost")]
WAYS = [Way(4, False, "127.0.0.1"), Way(4, True, "127.0.0.1"), Way(4, True, "localhost"), *WAYS5]
WAYS_IPV6 = [Way(5, False, "::1"), Way(5, True, "::1")]


def summary(data: bytes) -> tuple[int, str]:
    """What of a megabyte can be shown when it is not the one that was expected."""
    return len(data), hashlib.sha256(data).hexdigest()


def exchange(client: socket.socket) -> tuple[int, str]:
    """UPLOAD to the echo server, half-close, and the summary of everything that comes back."""
    client.settimeout(CLIENT_SECONDS)
    received = bytearray()

    def send() -> None:
        client.sendall(UPLOAD)
        client.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        while piece := client.recv(1 << 16):
            received += piece
        sending.result(CLIENT_SECONDS)
    return summary(received)


@pytest.fixture(scope="module")
def echo_ipv6(remote, echo_script, ipv6):
    return remote(echo_script, ipv6)


@pytest.fixture(scope="module")
def teller(remote):
    """Tells its client who it is, as seen from the server: address and port."""
    return remote(lambda connection, peer: connection.sendall(peer.encode()))


# --- PySocks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def socks(need_module):
    return need_module("socks")


@pytest.fixture(scope="module")
def pysocks(socks) -> Callable[..., socket.socket]:
    """pysocks(proxy, way, port, user, password): a socket connected through the proxy."""

    def connect(proxy, way: Way, port: int, user=None, password=None) -> socket.socket:
        kind = {4: socks.SOCKS4, 5: socks.SOCKS5}[way.version]
        client = socks.socksocket()
        client.settimeout(CLIENT_SECONDS)
        client.set_proxy(kind, proxy.host, proxy.port, way.remote_names, user, password)
        try:
            client.connect((way.host, port))
        except BaseException:
            client.close()
            raise
        return client

    return connect


def cause_of(caught: pytest.ExceptionInfo) -> BaseException:
    # Some versions of PySocks wrap what the handshake raises, others let it through.
    return getattr(caught.value, "socket_err", None) or caught.value


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pysocks(proxy, pysocks, echo, late_data, way) -> None:
    with closing(pysocks(proxy, way, echo.port)) as client:
        assert exchange(client) == summary(UPLOAD + late_data)


@pytest.mark.parametrize("way", WAYS5, ids=str)
def test_pysocks_with_password(locked_proxy, pysocks, echo, late_data, login, way) -> None:
    with closing(pysocks(locked_proxy, way, echo.port, login.user, login.password)) as client:
        assert exchange(client) == summary(UPLOAD + late_data)


@pytest.mark.parametrize("way", WAYS5, ids=str)
def test_pysocks_learns_the_address_it_has_at_the_server(proxy, pysocks, teller, way) -> None:
    with closing(pysocks(proxy, way, teller.port)) as client:
        host, port = client.get_proxy_sockname()
        assert client.recv(100).decode() == f"{host} {port}"


@pytest.mark.parametrize("with_user", [True, False])
def test_pysocks_not_let_in(locked_proxy, socks, pysocks, echo, login, with_user) -> None:
    account = (login.user, login.wrong) if with_user else ()
    with pytest.raises(socks.ProxyError) as caught:
        pysocks(locked_proxy, WAYS5[0], echo.port, *account)
    assert isinstance(cause_of(caught), socks.SOCKS5AuthError)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pysocks_refused(proxy, socks, pysocks, refused_port, way) -> None:
    kind, text = {
        4: (socks.SOCKS4Error, "0x5b: Request rejected or failed"),
        5: (socks.SOCKS5Error, "0x05: Connection refused"),
    }[way.version]
    with pytest.raises(socks.ProxyError) as caught:
        pysocks(proxy, way, refused_port)
    assert isinstance(cause_of(caught), kind)
    assert text in str(caught.value)


# --- python-socks, blocking and asyncio -----------------------------------------------------


@pytest.fixture(scope="module")
def library(need_module) -> SimpleNamespace:
    names = need_module("python_socks")
    return SimpleNamespace(
        error=names.ProxyError,
        versions={4: names.ProxyType.SOCKS4, 5: names.ProxyType.SOCKS5},
        sync=need_module("python_socks.sync").Proxy,
        asyncio=need_module("python_socks.async_.asyncio").Proxy,
    )


@pytest.fixture(scope="module")
def python_socks(library) -> Callable[..., socket.socket]:
    """python_socks(kind, proxy, way, port, user, password): a socket through the proxy."""

    def connect(kind: str, proxy, way: Way, port: int, user=None, password=None) -> socket.socket:
        settings = (
            library.versions[way.version],
            proxy.host,
            proxy.port,
            user,
            password,
            way.remote_names,
        )
        if kind == "sync":
            return library.sync(*settings).connect(way.host, port, CLIENT_SECONDS)

        async def dial() -> socket.socket:
            return await library.asyncio(*settings).connect(way.host, port, CLIENT_SECONDS)

        return asyncio.run(dial())

    return connect


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_python_socks(proxy, python_socks, echo, late_data, kind, way) -> None:
    with closing(python_socks(kind, proxy, way, echo.port)) as client:
        assert exchange(client) == summary(UPLOAD + late_data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS_IPV6, ids=str)
def test_python_socks_ipv6(proxy, python_socks, echo_ipv6, late_data, kind, way) -> None:
    with closing(python_socks(kind, proxy, way, echo_ipv6.port)) as client:
        assert exchange(client) == summary(UPLOAD + late_data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS5, ids=str)
def test_python_socks_with_password(
    locked_proxy, python_socks, echo, late_data, login, kind, way
) -> None:
    account = (login.user, login.password)
    with closing(python_socks(kind, locked_proxy, way, echo.port, *account)) as client:
        assert exchange(client) == summary(UPLOAD + late_data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("with_user", "complaint"), [(True, "authentication failure"), (False, "No acceptable")]
)
def test_python_socks_not_let_in(
    locked_proxy, library, python_socks, echo, login, kind, with_user, complaint
) -> None:
    account = (login.user, login.wrong) if with_user else ()
    with pytest.raises(library.error, match=complaint):
        python_socks(kind, locked_proxy, WAYS5[0], echo.port, *account)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_python_socks_refused(proxy, library, python_socks, refused_port, kind, way) -> None:
    with pytest.raises(library.error) as caught:
        python_socks(kind, proxy, way, refused_port)
    code, text = {4: (0x5B, "rejected"), 5: (0x05, "refused")}[way.version]
    assert caught.value.error_code == code
    assert text in str(caught.value)


def test_fifty_python_socks_clients_at_once(proxy, library, echo, late_data) -> None:
    async def one(number: int) -> bytes:
        way = WAYS[number % len(WAYS)]
        version = library.versions[way.version]
        gate = library.asyncio(version, proxy.host, proxy.port, rdns=way.remote_names)
        connection = await gate.connect(way.host, echo.port, CLIENT_SECONDS)
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            writer.write(b"client %d" % number)
            writer.write_eof()
            return await reader.read(-1)
        finally:
            writer.close()
            await writer.wait_closed()

    async def everyone() -> list[bytes]:
        async with asyncio.timeout(2 * CLIENT_SECONDS):
            return await asyncio.gather(*map(one, range(50)))

    answers = asyncio.run(everyone())
    assert answers == [b"client %d" % number + late_data for number in range(50)]
