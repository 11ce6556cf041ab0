# Clients that send what no SOCKS library would: the whole handshake in one segment with the
# payload behind it, and the wrong protocol altogether (a browser or a curl whose proxy type
# is wrong, a TLS client, a scanner). The first must work; the others must get a short answer
# or a close, never a wait, and a log line that says what they were.

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from support.ends import exactly

CLIENT_SECONDS = 30
LOOPBACK = socket.inet_aton("127.0.0.1")
SOCKS4_OK, SOCKS4_FAILED = 90, 91


def socks4(port: int) -> bytes:
    return struct.pack(">BBH4s", 4, 1, port, LOOPBACK) + b"user\0"


def socks4a(port: int) -> bytes:
    return struct.pack(">BBH4s", 4, 1, port, b"\0\0\0\1") + b"user\0localhost\0"


def socks5(port: int) -> bytes:
    return b"\x05\x01\x00" + struct.pack(">BBBB4sH", 5, 1, 0, 1, LOOPBACK, port)


def socks5_name(port: int) -> bytes:
    return b"\x05\x01\x00" + struct.pack(">BBBBB9sH", 5, 1, 0, 3, 9, b"localhost", port)


def answer_before_payload(handshake: bytes, code4: int, code5: int) -> bytes:
    """What the proxy says up to the code of its answer."""
    return bytes([0, code4]) if handshake[0] == 4 else bytes([5, 0, 5, code5])


def address_of(answer: bytes) -> tuple[str, int]:
    """The address in the answer, which may not be followed by anything."""
    if answer[0] == 0:
        port, host = struct.unpack(">xxH4s", answer)
    else:
        host, port = struct.unpack(">xxxxxB4sH", answer)[1:]
    return socket.inet_ntoa(host), port


def answer_size(handshake: bytes) -> int:
    return 8 if handshake[0] == 4 else 2 + 10


def read_all(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(1 << 16):
        received += piece
    return received


@pytest.fixture
def client(proxy) -> Iterator[socket.socket]:
    with proxy.connect() as connection:
        connection.settimeout(CLIENT_SECONDS)
        yield connection


@pytest.fixture(scope="module")
def teller(remote):
    """Says at once how it sees its client, then echoes."""

    def script(connection: socket.socket, peer: str) -> None:
        connection.sendall(peer.encode() + b"\n")
        while data := connection.recv(1 << 16):
            connection.sendall(data)

    return remote(script)


# --- all in one segment ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [socks4, socks4a, socks5, socks5_name])
def test_handshake_and_payload_in_one_segment(client, teller, shape) -> None:
    handshake = shape(teller.port)
    client.sendall(handshake + b"payload")
    client.shutdown(socket.SHUT_WR)
    answer = exactly(client, answer_size(handshake))
    assert answer.startswith(answer_before_payload(handshake, code4=SOCKS4_OK, code5=0))
    rest = read_all(client)
    host, port = address_of(answer)
    if handshake[0] == 5:  # SOCKS4 clients take no address from the answer
        assert rest == f"{host} {port}\npayload".encode()
    assert rest.endswith(b"\npayload")


def test_handshake_with_password_in_one_segment(locked_proxy, teller, login) -> None:
    user, password = login.user.encode(), login.password.encode()
    subnegotiation = b"\x01%c%b%c%b" % (len(user), user, len(password), password)
    request = socks5(teller.port)[3:]
    with locked_proxy.connect() as client:
        client.settimeout(CLIENT_SECONDS)
        client.sendall(b"\x05\x02\x00\x02" + subnegotiation + request + b"payload")
        client.shutdown(socket.SHUT_WR)
        assert exactly(client, 8) == b"\x05\x02\x01\x00\x05\x00\x00\x01"
        exactly(client, 6)
        assert read_all(client).endswith(b"\npayload")


@pytest.mark.parametrize("shape", [socks4, socks4a, socks5, socks5_name])
def test_refusal_reaches_a_client_that_has_sent_more(client, refused_port, shape) -> None:
    # Closing with unread input would make the kernel reset the connection, and the reset can
    # overtake the answer.
    handshake = shape(refused_port)
    client.sendall(handshake + bytes(1 << 16))
    answer = exactly(client, answer_size(handshake))
    assert answer.startswith(answer_before_payload(handshake, code4=SOCKS4_FAILED, code5=5))
    assert len(answer) == answer_size(handshake)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b""


# --- the wrong protocol ---------------------------------------------------------------------


def still_serves(proxy, teller) -> bool:
    with proxy.connect() as client:
        client.settimeout(CLIENT_SECONDS)
        client.sendall(socks5(teller.port) + b"?")
        client.shutdown(socket.SHUT_WR)
        return read_all(client).endswith(b"\n?")


def test_curl_to_the_proxy_as_if_it_were_a_site(proxy, curl, teller) -> None:
    result = curl("-o", "/dev/null", "-w", "%{http_code}", f"http://{proxy.address}/")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"400", b"")
    assert still_serves(proxy, teller)


def test_curl_that_takes_it_for_an_http_proxy(proxy, curl, teller) -> None:
    target = f"http://127.0.0.1:{teller.port}/"
    plain = curl("-x", f"http://{proxy.address}", "-o", "/dev/null", "-w", "%{http_code}", target)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, b"400", b"")
    tunnel = curl("-p", "-x", f"http://{proxy.address}", "-w", "%{http_connect}", target)
    assert tunnel.returncode != 0
    assert (tunnel.stdout, b"400" in tunnel.stderr) == (b"400", True)
    assert still_serves(proxy, teller)


def test_tls_client_is_closed(proxy, client, teller) -> None:
    context = ssl.create_default_context()
    with pytest.raises((ssl.SSLError, ConnectionError)):  # either, but no TimeoutError
        context.wrap_socket(client, server_hostname="localhost").close()
    assert still_serves(proxy, teller)


def test_curl_with_tls(proxy, curl, teller) -> None:
    result = curl("-k", f"https://{proxy.address}/")
    assert result.returncode == 35, result.stderr  # CURLE_SSL_CONNECT_ERROR; 28 is a time-out
    assert still_serves(proxy, teller)


@pytest.mark.parametrize(
    "noise",
    [b"\0", b"\xff" * 1000, b"\x03\x01", b"SSH-2.0-test\r\n", b"\x06" + bytes(64)],
    ids=["nul", "ones", "version-3", "ssh", "version-6"],
)
def test_noise_is_closed(proxy, client, teller, noise) -> None:
    client.sendall(noise)
    try:
        answer = read_all(client)
    except ConnectionError:
        answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 ")
    assert still_serves(proxy, teller)


def test_log_says_what_the_strangers_were(start_proxy, curl) -> None:
    started = start_proxy("--log-level", "debug")
    curl("-o", "/dev/null", f"http://{started.address}/")
    curl("-k", f"https://{started.address}/")
    started.finish()  # with which all is in the log
    said = [line.partition(": ")[2] for line in started.stderr().splitlines()]
    assert said[:2] == [
        "an HTTP client on the SOCKS port (first octet 0x47)",
        "a TLS client on the SOCKS port (first octet 0x16)",
    ]
