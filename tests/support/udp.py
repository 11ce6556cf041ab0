# Clients of UDP ASSOCIATE and their targets, as the tests need them: sockets for datagrams,
# and an association with its control connection.

from __future__ import annotations

import asyncio
import socket

PATIENCE = 10.0
GREETED = b"\x05\x00"


class Datagrams:
    """A UDP socket of the test."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.sock.setblocking(False)
        self.sock.bind((host, port))
        self.name = self.sock.getsockname()[:2]

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                data, sender = self.sock.recvfrom(1 << 16)
            except BlockingIOError:
                assert loop.time() < deadline, "no datagram came"
                await asyncio.sleep(0.002)
            else:
                return data, sender[:2]

    def is_silent(self) -> bool:
        try:
            self.sock.recv(1 << 16)
        except BlockingIOError:
            return True
        return False


class Association:
    """A client's: its control connection, its socket, and where it was told to send to."""

    def __init__(self, say, control, own, reply: bytes) -> None:
        self._say = say
        self.control = control
        self.own = own
        self.reply = reply
        family = socket.AF_INET if reply[3] == 1 else socket.AF_INET6
        self.place = socket.inet_ntop(family, reply[4:-2]), int.from_bytes(reply[-2:])

    def end(self, how: str = "close") -> None:
        """Of its connection: ``close``, ``finish`` or ``reset``."""
        getattr(self.control, how)()
        self.own.sock.close()

    def send(self, host: str, port: int, payload: bytes) -> None:
        # A datagram's header is a request with RSV and FRAG in place of its first octets.
        head = b"\x00\x00\x00" + self._say.socks5(host, port)[3:]
        self.own.sock.sendto(head + payload, self.place)

    async def reaches(self, target, host: str = "", payload: bytes = b"ping") -> bool:
        """There and back: after that, all that was sent before has been seen to."""
        self.send(host or target.name[0], target.name[1], payload)
        data, sender = await target.receive()
        target.sock.sendto(b"back:" + data, sender)
        head = b"\x00\x00\x00" + self._say.socks5(*target.name)[3:]
        back = await self.own.receive()
        return (data, back) == (payload, (head + b"back:" + payload, self.place))


async def asked(client, say, dst=("0.0.0.0", 0)) -> bytes:
    """The whole reply to a request for an association."""
    assert await client.ask(say.no_login, 2) == GREETED
    await client.send(say.socks5(*dst, command=3))
    head = await client.exactly(4)
    return head + await client.exactly(18 if head[3] == 4 else 6)


async def reaches_until(condition, one, target):
    """By the name target.test; that nothing on the way there and back is lost until then."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert await one.reaches(target, "target.test")
        assert asyncio.get_running_loop().time() < deadline, "it is never asked for again"
