"""SOCKS5 from the server's side: RFC 1928, with RFC 1929 user/password.

    METHODS  -- Methods -->  session calls choose(method)
      NO_AUTH      -> REQUEST
      USER_PASSWORD -> CREDENTIALS -- Credentials --> session calls verdict(ok)
      NO_ACCEPTABLE -> WAIT
    CREDENTIALS  accepted -> REQUEST, else -> WAIT
    REQUEST  -- Request -->  WAIT

A request can be reached only through choose() or an accepting verdict(). Field
lengths are octets of the protocol itself, so no message can exceed 513 octets.
"""

from __future__ import annotations

from fastsocks.errors import IdentReply, ProtocolError, Reply
from fastsocks.proto import wire
from fastsocks.proto.machine import Event, Machine, Methods
from fastsocks.proto.wire import NO_ACCEPTABLE, NO_AUTH, USER_PASSWORD, Credentials, Request

VERSION = 5

AUTH_VERSION = 1
AUTH_OK, AUTH_FAILED = b"\x01\x00", b"\x01\x01"

# Where the host begins and ends in a request; a name's length is in octet 4.
HOST_AT = {wire.ATYP_IPV4: (4, 8), wire.ATYP_NAME: (5, 5), wire.ATYP_IPV6: (4, 20)}

# The reply to the methods offered, by the one that is chosen.
CHOSEN = [bytes((VERSION, method)) for method in range(256)]

UNSPECIFIED = b"\x01\x00\x00\x00\x00\x00\x00"  # ATYP 1, 0.0.0.0, port 0

# What a reply for success begins with, by the octets of the address that follows.
GRANTED = {
    4: bytes((VERSION, Reply.SUCCEEDED, 0, wire.ATYP_IPV4)),
    16: bytes((VERSION, Reply.SUCCEEDED, 0, wire.ATYP_IPV6)),
}


class Socks5(Machine):
    __slots__ = ("_atyp", "_bnd_is_used", "_due", "_unasked_login")
    has_login = True
    tells_ipv6 = True

    def __init__(self) -> None:
        self._data = b""
        self.next_event = self._read_methods
        self._atyp = wire.ATYP_IPV4
        self._bnd_is_used = False
        # A refusal as it would be now, b"" for none; None where it is a reply, with its code.
        self._due: bytes | None = CHOSEN[NO_ACCEPTABLE]
        self._unasked_login = False

    # -- what the session decides ------------------------------------------

    def choose(self, method: int) -> bytes:
        """The method reply; what is read next depends on it."""
        if method == NO_AUTH:
            self.next_event, self._due = self._read_request, None
            self._unasked_login = True
        elif method == USER_PASSWORD:
            self.next_event, self._due = self._read_credentials, AUTH_FAILED
        else:
            self.next_event, self._due = self._wait, b""
        return CHOSEN[method]

    def verdict(self, accepted: bool) -> bytes:
        """The answer to Credentials (RFC 1929: its version octet is 1)."""
        self.next_event = self._read_request if accepted else self._wait
        self._due = None if accepted else b""
        return AUTH_OK if accepted else AUTH_FAILED

    # -- replies -----------------------------------------------------------

    def granted(self, host: str, port: int) -> bytes:
        """BND in the family of the request: only ATYP 1 and 4 are ever sent, as
        clients that read fixed sizes fail on anything else. An IPv4 address for a
        request of ATYP 4 is IPv4-mapped; an IPv6 address that does not fit is zero, and
        the port still true. Not so for BIND and UDP ASSOCIATE, where that address is to
        be used: in its own family."""
        is_ipv6 = ":" in host if self._bnd_is_used else self._atyp == wire.ATYP_IPV6
        if is_ipv6:
            literal = host.partition("%")[0] if ":" in host else f"::ffff:{host}"
            packed = wire.packed_ipv6(literal) or bytes(16)
        else:
            packed = wire.packed_ipv4(host) or bytes(4)
        return GRANTED[len(packed)] + packed + port.to_bytes(2)

    def refusal(self, reply: Reply | IdentReply) -> bytes:
        """To the message that is owed an answer."""
        if self._due is not None:
            return self._due
        code = reply if isinstance(reply, Reply) else Reply.NOT_ALLOWED
        return bytes((VERSION, code, 0)) + UNSPECIFIED

    # -- reading -----------------------------------------------------------

    def _read_methods(self) -> Event | None:
        data = self._data
        if len(data) < 2:
            return None
        if data[0] != VERSION:
            raise ProtocolError(f"version {data[0]} in a SOCKS5 greeting", None)
        if data[1] == 0:
            raise ProtocolError("no authentication method offered")
        end = 2 + data[1]
        if len(data) < end:
            return None
        self._data = data[end:]
        self.next_event = self._wait
        return Methods(data[2:end])

    def _read_credentials(self) -> Event | None:
        data = self._data
        if data and data[0] != AUTH_VERSION:
            raise ProtocolError(f"version {data[0]} in user/password authentication")
        if len(data) < 2 or len(data) < 3 + data[1]:
            return None
        user_end = 2 + data[1]
        end = user_end + 1 + data[user_end]
        if len(data) < end:
            return None
        # RFC 1929 says 1 to 255 octets; real clients send empty fields.
        self._data = data[end:]
        self.next_event = self._wait
        self._due = AUTH_FAILED
        self._unasked_login = False
        return Credentials(data[2:user_end], data[user_end + 1 : end])

    def _read_request(self) -> Event | None:
        data = self._data
        if not data:
            return None
        if data[0] != VERSION:
            if data[0] == AUTH_VERSION and self._unasked_login:
                # Some clients authenticate although no method asked for it (Tor's
                # do, to isolate streams); the answer costs nothing, once.
                return self._read_credentials()
            raise ProtocolError(f"version {data[0]} in a SOCKS5 request")
        if len(data) < 4:
            return None
        atyp = data[3]
        if atyp not in HOST_AT:
            raise ProtocolError(f"address type {atyp}", Reply.ADDRESS_NOT_SUPPORTED)
        host_start, host_end = HOST_AT[atyp]
        if atyp == wire.ATYP_NAME and len(data) > 4:
            host_end += data[4]
        if len(data) < host_end + 2:
            return None
        # RSV (data[2]) should be zero; clients that set it work elsewhere.
        end = host_end + 2
        self._data = data[end:]
        self._atyp = atyp
        self.next_event = self._wait
        command = data[1]
        if command not in wire.COMMAND_NAMES:
            raise ProtocolError(f"command {command}", Reply.COMMAND_NOT_SUPPORTED)
        self._bnd_is_used = command != wire.CONNECT
        raw, port = data[host_start:host_end], int.from_bytes(data[host_end:end])
        if atyp == wire.ATYP_IPV4:
            return Request(command, wire.ipv4_text(raw), port, False)
        if atyp == wire.ATYP_IPV6:
            return Request(command, wire.ipv6_text(raw), port, False)
        if command == wire.UDP_ASSOCIATE:
            # Where the client means to send from; nothing is ever done with it, and
            # PySocks has the name "0" here.
            return Request(command, "", port, False)
        host, is_name = wire.parse_name(raw)
        return Request(command, host, port, is_name)
