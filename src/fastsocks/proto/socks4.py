"""SOCKS4 and SOCKS4a from the server's side.

    REQUEST -- Request --> WAIT

One message: VN CD DSTPORT DSTIP USERID NUL, and with 4a (DSTIP 0.0.0.x, x not 0)
NAME NUL. The protocol gives its two text fields no length, so they get limits.
"""

from __future__ import annotations

from fastsocks.errors import IdentReply, ProtocolError, Reply
from fastsocks.proto import wire
from fastsocks.proto.machine import Event, Machine
from fastsocks.proto.wire import Request

VERSION = 4
GRANTED, REJECTED = 90, 91
REJECTED_FOR: dict[Reply | IdentReply, int] = {
    IdentReply.NO_IDENTD: 92,
    IdentReply.OTHER_USER: 93,
}

# curl and SOCKS5 stop at 255 as well.
USER_LIMIT = 255
NAME_LIMIT = 255
FIXED = 8


class Socks4(Machine):
    __slots__ = ()
    has_login = False
    tells_ipv6 = False

    def __init__(self) -> None:
        self._data = b""
        self.next_event = self._read_request

    def choose(self, method: int) -> bytes:
        return b""  # SOCKS4 has no methods and no credentials: never asked

    def verdict(self, accepted: bool) -> bytes:
        return b""

    def granted(self, host: str, port: int) -> bytes:
        packed = wire.packed_ipv4(host) or bytes(4)
        return bytes((0, GRANTED)) + port.to_bytes(2) + packed

    def refusal(self, reply: Reply | IdentReply) -> bytes:
        """SOCKS4 tells no reasons but those of ident: every other refusal is 91."""
        return bytes((0, REJECTED_FOR.get(reply, REJECTED))) + bytes(6)

    def _read_request(self) -> Event | None:
        data = self._data
        if len(data) > 1 and data[1] not in (wire.CONNECT, wire.BIND):
            raise ProtocolError(f"command {data[1]} in SOCKS4")
        user_end = data.find(0, FIXED, FIXED + USER_LIMIT + 1)
        if user_end < 0:
            if len(data) > FIXED + USER_LIMIT:
                raise ProtocolError(f"SOCKS4 user id of more than {USER_LIMIT} octets")
            return None
        command, port, address = data[1], int.from_bytes(data[2:4]), data[4:8]
        user = data[FIXED:user_end]
        if address[:3] == b"\0\0\0" and address[3]:
            name_start = user_end + 1
            name_end = data.find(0, name_start, name_start + NAME_LIMIT + 1)
            if name_end < 0:
                if len(data) > name_start + NAME_LIMIT:
                    raise ProtocolError(f"SOCKS4a name of more than {NAME_LIMIT} octets")
                return None
            self._data = data[name_end + 1 :]
            self.next_event = self._wait
            host, is_name = wire.parse_name(data[name_start:name_end])
            return Request(command, host, port, is_name, user)
        self._data = data[user_end + 1 :]
        self.next_event = self._wait
        if address == b"\0\0\0\0" and command == wire.CONNECT:
            # Linux would connect to loopback.
            raise ProtocolError("SOCKS4 request for 0.0.0.0")
        return Request(command, wire.ipv4_text(address), port, False, user)
