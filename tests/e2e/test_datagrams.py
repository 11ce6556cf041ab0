# UDP ASSOCIATE with clients nobody here wrote: PySocks' datagram socket, and aioquic, which
# moves megabytes over it in QUIC and notices every datagram that is lost, doubled or changed.

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from support.proxies import OUTSIDE

CLIENT_SECONDS = 30
QUIC_SIZE = 2 * (1 << 20)
SIZES = (0, 1, 1200, 1473, 9000, 65_507 - 22)  # 22 is the header with an IPv6 address


@pytest.fixture(scope="module")
def socks(need_module):
    return need_module("socks")


@pytest.fixture
def datagram_socket(outside_proxy, socks) -> Iterator[socket.socket]:
    """A UDP socket of PySocks, which asks for the association by the name "0"."""
    client = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(client):
        client.settimeout(CLIENT_SECONDS)
        client.set_proxy(socks.SOCKS5, outside_proxy.host, outside_proxy.port)
        client.bind(("127.0.0.1", 0))
        yield client


class Echo:
    """Sends every datagram back, after a line that says how it sees its sender."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            data, sender = self.sock.recvfrom(1 << 16)
            if data == b"stop" and sender == self.address:
                return
            self.sock.sendto(sender[0].encode() + b"\n" + data[: (1 << 16) - 100], sender)

    def close(self) -> None:
        self.sock.sendto(b"stop", self.address)
        self._thread.join(CLIENT_SECONDS)
        self.sock.close()


@pytest.fixture(scope="module")
def udp_echo() -> Iterator[Echo]:
    with closing(Echo()) as echo:
        yield echo


@pytest.mark.parametrize("size", SIZES)
def test_pysocks_datagrams(datagram_socket, udp_echo, size) -> None:
    sent = os.urandom(size)
    datagram_socket.sendto(sent, udp_echo.address)
    data, sender = datagram_socket.recvfrom(1 << 16)
    assert sender == udp_echo.address
    assert data == OUTSIDE.encode() + b"\n" + sent[: (1 << 16) - 100]


def test_pysocks_two_targets_by_name_and_by_address(datagram_socket, udp_echo) -> None:
    with closing(Echo()) as second:
        for host, target in (("localhost", udp_echo), ("127.0.0.1", second)):
            datagram_socket.sendto(b"to " + host.encode(), (host, target.address[1]))
            data, sender = datagram_socket.recvfrom(1 << 16)
            assert (sender, data.split(b"\n")[1]) == (target.address, b"to " + host.encode())


# --- QUIC -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, need_module):
    need_module("aioquic")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "quic.site.test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("quic.site.test")]), False)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("certificate")
    (directory / "certificate").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (directory / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return directory


def test_quic_transfer(datagram_socket, certificate) -> None:
    """Megabytes there and back; PySocks' socket below, aioquic on top."""
    from aioquic.asyncio import QuicConnectionProtocol, serve
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    content, peers = os.urandom(QUIC_SIZE), set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read()
        writer.write(hashlib.sha256(received).digest() + received)
        writer.write_eof()

    class Server(QuicConnectionProtocol):
        def datagram_received(self, data, addr) -> None:
            peers.add(addr[0])
            super().datagram_received(data, addr)

    async def transfer() -> bytes:
        loop, streams = asyncio.get_running_loop(), set()

        def on_stream(reader, writer) -> None:
            task = loop.create_task(answer(reader, writer))
            streams.add(task)
            task.add_done_callback(streams.discard)

        settings = QuicConfiguration(alpn_protocols=["test"], is_client=False)
        settings.load_cert_chain(certificate / "certificate", certificate / "key")
        server = await serve(
            "127.0.0.1",
            0,
            configuration=settings,
            create_protocol=Server,
            stream_handler=on_stream,
        )
        target = server._transport.get_extra_info("sockname")
        own = QuicConfiguration(
            alpn_protocols=["test"], is_client=True, server_name="quic.site.test"
        )
        own.load_verify_locations(str(certificate / "certificate"))
        # The first datagram makes PySocks ask for the association, which blocks: the loop
        # takes the socket only afterwards. The server drops what is no QUIC.
        datagram_socket.sendto(b"?", target)
        datagram_socket.setblocking(False)
        transport, client = await loop.create_datagram_endpoint(
            lambda: QuicConnectionProtocol(QuicConnection(configuration=own)),
            sock=datagram_socket,
        )
        try:
            client.connect(target)
            await client.wait_connected()
            reader, writer = await client.create_stream()
            writer.write(content)
            writer.write_eof()
            return await reader.read()
        finally:
            client.close()
            await client.wait_closed()
            transport.close()
            server.close()

    async def in_time() -> bytes:
        async with asyncio.timeout(2 * CLIENT_SECONDS):
            return await transfer()

    received = asyncio.run(in_time())
    assert received == hashlib.sha256(content).digest() + content
    assert peers == {OUTSIDE}
