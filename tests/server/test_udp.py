# UDP ASSOCIATE through the server, as its clients see it: the address they are told, where
# their datagrams get to and where not, how many they may have, and what ends one.

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from fastsocks import addresses, associate, resolve

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


@pytest.fixture
def datagrams():
    """``datagrams(host, port)``: a socket, closed with the test."""
    made = []

    def make(host="127.0.0.1", port=0):
        made.append(Datagrams(host, port))
        return made[-1]

    yield make
    for one in made:
        one.sock.close()


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


@pytest.fixture
def associated(dial, datagrams, say):
    """``await associated(server, which, dst)``: an association of a client on loopback."""

    async def make(server, which=0, dst=("0.0.0.0", 0)):
        control = await dial(server, which)
        own = datagrams(control.name[0])
        reply = await asked(control, say, dst)
        assert reply[:3] == b"\x05\x00\x00", reply
        return Association(say, control, own, reply)

    return make


@pytest.fixture
def not_on_loopback(monkeypatch):
    """Clients count as coming from elsewhere, who may not reach loopback."""
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)


# -- the reply -------------------------------------------------------------------

DSTS = [("0.0.0.0", 0), ("127.0.0.1", 53), ("198.51.100.7", 9), ("::", 0), ("0", 0), ("a.test", 5)]


@pytest.mark.parametrize("dst", DSTS, ids=lambda dst: f"dst {dst[0]}")
@pytest.mark.parametrize("host", ["127.0.0.3", "::1"])
async def test_reply_and_a_datagram_each_way(serve, associated, datagrams, books, host, dst):
    """BND is where the client came to, in its own family; DST is looked at by nobody."""
    targets = [datagrams(family) for family in ("127.0.0.1", "::1")]
    async with serve(listen=[f"[{host}]:0" if ":" in host else f"{host}:0"]) as server:
        ledger = books(server)
        one = await associated(server, dst=dst)
        assert one.place[0] == host
        assert one.place[1] not in (0, server.addresses[0][1])
        assert len(one.reply) == (22 if ":" in host else 10)
        assert one.control.data_segments() == 2, "a reply in pieces"
        for target in targets:
            assert await one.reaches(target)
        assert server.sessions == 1
        one.end()
        assert await ledger.outstanding() == {}


async def test_client_of_a_listener_for_both_families(serve, associated, datagrams):
    """Its address is IPv4-mapped to the kernel, and to nobody else."""
    async with serve(listen=["[::]:0"], open=True) as server:
        server.addresses[0] = ("127.0.0.1", server.addresses[0][1])
        one = await associated(server)
        assert one.place[0] == "127.0.0.1"
        assert await one.reaches(datagrams())


@pytest.mark.parametrize("announced", ["192.0.2.77", "2001:db8::77"])
@pytest.mark.parametrize("dst", ["0.0.0.0", "::"])
async def test_announced_address(serve, associated, datagrams, announced, dst):
    """As behind NAT: told another one, of whatever family; the port is the true one."""
    async with serve(udp_address=announced) as server:
        one = await associated(server, dst=(dst, 0))
        assert one.place[0] == announced
        one.place = ("127.0.0.1", one.place[1])
        assert await one.reaches(datagrams())


@pytest.fixture
def port_range():
    """Two neighbouring ports that are free for UDP."""
    for first in range(42000, 43000, 2):
        with (
            socket.socket(type=socket.SOCK_DGRAM) as one,
            socket.socket(type=socket.SOCK_DGRAM) as two,
        ):
            try:
                one.bind(("127.0.0.1", first))
                two.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
            return first, first + 1
    raise AssertionError


async def test_range_of_ports(serve, associated, dial, say, datagrams, port_range, books, until):
    """Used up, it is a general failure; what has ended makes room."""
    target = datagrams()
    async with serve(udp_ports=port_range) as server:
        ledger = books(server)
        both = [await associated(server) for _ in range(2)]
        assert {one.place[1] for one in both} == set(port_range)
        third = await dial(server)
        assert await asked(third, say) == say.failed(1)
        assert await third.to_end() == b""
        third.close()
        both[0].end()
        await until(lambda: server.sessions == 1, "the first has ended")
        again = await associated(server)
        assert again.place[1] == both[0].place[1]
        assert await again.reaches(target)
        assert await both[1].reaches(target)
        again.end()
        both[1].end()
        assert await ledger.outstanding() == {}


# -- how many --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_so_many_for_one_client(serve, associated, dial, say, books, until, how):
    async with serve(udp_per_client=2, listen=["127.0.0.1:0", "[::1]:0"]) as server:
        ledger = books(server)
        first, second = [await associated(server) for _ in range(2)]
        for _ in range(3):  # and being refused costs nothing either
            third = await dial(server)
            assert await asked(third, say) == say.failed(1)
            assert await third.to_end() == b""
            third.close()
        other = await associated(server, which=1)
        first.end(how)
        await until(lambda: server.sessions == 2, "the first has ended")
        again = await associated(server)
        for one in (second, other, again):
            one.end()
        assert await ledger.outstanding() == {}


async def test_one_that_could_not_be_made_is_not_counted(
    serve, associated, dial, say, monkeypatch, books
):
    async with serve(udp_per_client=1) as server:
        ledger = books(server)
        with monkeypatch.context() as patch:
            patch.setattr(associate.Associations, "begin", out_of_descriptors)
            for _ in range(2):
                client = await dial(server)
                assert await asked(client, say) == say.failed(1)
                client.close()
        one = await associated(server)
        one.end()
        assert await ledger.outstanding() == {}


def out_of_descriptors(*what):
    raise OSError(24, "Too many open files")


# -- its end ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "close", "reset"])
async def test_it_ends_with_its_connection(server, associated, datagrams, books, how):
    target, late = datagrams(), datagrams()
    ledger = books(server)
    one = await associated(server)
    assert await one.reaches(target)
    await one.control.send(b"means nothing")
    assert await one.reaches(target)
    one.end(how)
    if how == "finish":
        assert await one.control.to_end() == b""
        one.control.close()
    assert await ledger.outstanding() == {}
    late.sock.sendto(b"too late", one.place)
    await one.control.seen()
    assert target.is_silent()


async def test_it_ends_when_the_server_stops(descriptors_balance, serve, associated, datagrams):
    """And gives up its place once, not twice."""
    server = serve(udp_per_client=3)
    server.start()
    held = server._sessions._commands[3].args[0]._held
    ones = [await associated(server) for _ in range(3)]
    assert await ones[0].reaches(datagrams())
    assert held == {"127.0.0.1": 3}
    async with asyncio.timeout(5):
        await server.stop(0)
    assert held == {}
    for one in ones:
        assert await one.control.ended()
        one.control.close()


async def test_it_ends_when_nothing_is_said(serve, associated, books):
    async with serve(udp_timeout=0.3, idle_timeout=0) as server:
        ledger = books(server)
        one = await associated(server)
        assert await one.control.ended()
        one.end()
        assert await ledger.outstanding() == {}


async def test_end_of_the_flow_is_told_once(server, associated, monkeypatch, books):
    ended = []
    real = associate.Associations.end
    monkeypatch.setattr(
        associate.Associations, "end", lambda self, host: ended.append(host) or real(self, host)
    )
    ledger = books(server)
    for how in ("finish", "close", "reset"):
        one = await associated(server)
        one.end(how)
        one.control.close()
    assert await ledger.outstanding() == {}
    one = await associated(server)
    await server.stop(0)
    assert ended == ["127.0.0.1"] * 4


# -- names -----------------------------------------------------------------------


async def test_name_is_resolved_here(server, associated, datagrams, names):
    names.answers["target.test"] = ["127.0.0.1"]
    one = await associated(server)
    target = datagrams()
    for _ in range(3):
        assert await one.reaches(target, "target.test")
        assert await one.reaches(target, "TARGET.test")
    assert names.asked == ["target.test"]


async def test_name_that_does_not_exist_is_dropped(server, associated, datagrams, names):
    names.answers["nowhere.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
    one = await associated(server)
    target = datagrams()
    for name in ("nowhere.test", "empty..label", "127.1", "a/b", "a b"):
        one.send(name, target.name[1], b"lost")
    assert await one.reaches(target)
    assert names.asked == ["nowhere.test"]


async def test_literal_in_a_name_field(server, associated, datagrams, say):
    one = await associated(server)
    target = datagrams()
    field = b"\x00\x00\x00\x03\x09127.0.0.1" + target.name[1].to_bytes(2)
    one.own.sock.sendto(field + b"ping", one.place)
    assert (await target.receive())[0] == b"ping"


@pytest.mark.parametrize("limit", [3, associate.NAMES_LIMIT])
async def test_names_that_wait_are_bounded_and_literals_are_not(
    serve, associated, datagrams, names, monkeypatch, books, limit
):
    """Neither does one client's hold up another's."""
    monkeypatch.setattr(associate, "NAMES_LIMIT", limit)
    many = [f"name{number}.test" for number in range(100)]
    names.hang(*many)
    names.answers["known.test"] = ["127.0.0.1"]
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        one, other = await associated(server), await associated(server)
        assert await one.reaches(target)  # its literal is known before the flood
        for name in many:
            one.send(name, 9, b"held")
            await one.control.seen()
        assert await one.reaches(target)
        assert await other.reaches(target, "known.test")
        assert 0 < len(names.asked) - 1 <= limit
        one.end()
        other.end()
        assert await ledger.outstanding() == {}  # although nothing has been answered


async def test_name_that_is_answered_after_the_end(
    serve, associated, datagrams, names, until, books
):
    """What waited for it is gone with the association; the answer serves the next one."""
    names.hang("slow.test")
    names.answers["slow.test"] = ["127.0.0.1"]
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        one = await associated(server)
        one.send("slow.test", target.name[1], b"held")
        await until(lambda: names.asked, "it is asked for")
        one.end("reset")
        assert await ledger.outstanding() == {}
        names.release()
        other = await associated(server)
        assert await other.reaches(target, "slow.test")
        assert target.is_silent()


# -- where they may go -----------------------------------------------------------


async def test_denied_destination_gets_nothing(serve, associated, datagrams, not_on_loopback):
    """And the association lives on. What is allowed may be said by its range."""
    async with serve(allow=["127.0.0.9/32"]) as server:
        one = await associated(server)
        denied, open_to_it = datagrams(), datagrams("127.0.0.9")
        for _ in range(3):
            one.send(*denied.name, b"never")
            one.send("::1", denied.name[1], b"never")
            one.send("::ffff:127.0.0.1", denied.name[1], b"never")
            assert await one.reaches(open_to_it)
        assert denied.is_silent()
        assert server.engine.counters()["udp_dropped_denied"] == 9


@pytest.mark.parametrize("allow", ["loopback", "all", "127.0.0.0/8"])
async def test_operator_opens_a_range(serve, associated, datagrams, not_on_loopback, allow):
    async with serve(allow=[allow]) as server:
        one = await associated(server)
        assert await one.reaches(datagrams())


async def test_name_with_a_denied_and_an_allowed_address(
    serve, associated, datagrams, names, not_on_loopback
):
    async with serve(allow=["127.0.0.9/32"]) as server:
        allowed = datagrams("127.0.0.9")
        denied = datagrams("127.0.0.1", allowed.name[1])
        names.answers["both.test"] = ["127.0.0.1", "127.0.0.9"]
        names.answers["denied.test"] = ["127.0.0.1"]
        one = await associated(server)
        one.send("denied.test", allowed.name[1], b"never")
        for _ in range(3):
            assert await one.reaches(allowed, "both.test")
        assert denied.is_silent()


async def test_name_that_means_something_else_later(
    serve, associated, datagrams, names, not_on_loopback, monkeypatch, until
):
    """It is judged again when it is resolved again."""
    monkeypatch.setattr(associate, "NAME_TTL", 0.05)
    monkeypatch.setattr(resolve, "REMEMBER_FOUND", 0.0)
    async with serve(allow=["127.0.0.9/32"]) as server:
        target = datagrams("127.0.0.9")
        denied = datagrams("127.0.0.1", target.name[1])
        names.answers["rebound.test"] = ["127.0.0.9"]
        one = await associated(server)
        assert await one.reaches(target, "rebound.test")
        names.answers["rebound.test"] = ["127.0.0.1"]

        def is_denied():
            one.send("rebound.test", target.name[1], b"again")
            return server.engine.counters()["udp_dropped_denied"] > 0

        await until(is_denied, "the new address is refused")
        assert denied.is_silent()


@pytest.mark.parametrize("host", ["127.0.0.1", "target.test"])
async def test_error_in_judging(
    server, associated, datagrams, names, monkeypatch, books, caplog, host, until
):
    """Is a no, is in the log once, and harms nobody: not even the same association."""
    names.answers["target.test"] = ["127.0.0.1"]
    bad, good = datagrams(), datagrams()
    ledger = books(server)
    real = addresses.Judge.judge

    def judge(self, client_host, host, port, datagram=False):
        if port == bad.name[1]:
            raise RuntimeError("a mistake in judging")
        real(self, client_host, host, port, datagram)

    monkeypatch.setattr(addresses.Judge, "judge", judge)
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: reported.append(what))
    caplog.set_level(logging.INFO)
    one, other = await associated(server), await associated(server)
    for _ in range(5):
        one.send(host, bad.name[1], b"never")
    for each in (one, other, one):
        assert await each.reaches(good)
    await until(
        lambda: server.engine.counters()["udp_dropped_denied"] == 5, "all of them are dropped"
    )
    assert bad.is_silent()
    told = len(reported) + sum(record.exc_info is not None for record in caplog.records)
    assert told == 1
    one.end()
    other.end()
    assert await ledger.outstanding() == {}


# -- where it is not offered -----------------------------------------------------


async def test_off(serve, dial, say):
    async with serve(udp=False) as server:
        client = await dial(server)
        assert await asked(client, say) == say.failed(7)
        assert await client.to_end() == b""


async def test_socks4_has_none(server, dial, say, books):
    ledger = books(server)
    client = await dial(server)
    await client.send(say.socks4("127.0.0.1", 53, command=3))
    assert await client.to_end() == say.failed4
    client.close()
    assert await ledger.outstanding() == {}


async def test_many_that_come_and_go(server, associated, datagrams, books):
    target = datagrams()
    ledger = books(server)
    for how in ("close", "reset", "finish") * 7:
        one = await associated(server)
        assert await one.reaches(target)
        one.end(how)
        one.control.close()
    assert await ledger.outstanding() == {}
