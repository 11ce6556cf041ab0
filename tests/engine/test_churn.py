# Shows that nothing is left of sessions, however many there were and however they went; and
# that what is closed and opened in one and the same turn is not mistaken for one another.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import pytest

SESSIONS = 10_000
AT_ONCE = 100
FATES = [
    "connects and goes",
    "half a message and goes",
    "leaves during the dial",
    "dials who refuses",
    "is refused",
    "client leaves",
    "remote leaves",
    "both leave",
    "is killed",
]
GREETING = 4  # octets of a whole message here
NAME = 8  # octets that tell a remote which client it belongs to
GRANTED = b"go on"


class Crowd:
    """Clients, a remote, and the session between them, all of which fail at random points."""

    def __init__(self, rig, reset, seed: int) -> None:
        self.rig = rig
        self.reset = reset
        self.random = random.Random(seed)
        self.remotes: dict[bytes, asyncio.Future[socket.socket]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.listener = rig.listener(backlog=1000)
        self.listener.setblocking(False)
        self.refusing = rig.hold(socket.socket())
        self.refusing.bind(("127.0.0.1", 0))
        self.address = rig.listen(self.serve)
        self.errors: list[BaseException] = []
        rig.loop.add_reader(self.listener.fileno(), self.on_remote)

    def close(self) -> None:
        self.rig.loop.remove_reader(self.listener.fileno())

    def on_remote(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                task = self.rig.loop.create_task(self.introduce(sock))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def introduce(self, sock: socket.socket) -> None:
        """Gives a remote to its client, whose name is what comes first; if that is there."""
        name = b""
        with contextlib.suppress(ConnectionError):
            while len(name) < NAME:
                piece = await self.rig.loop.sock_recv(sock, NAME - len(name))
                if not piece:
                    break
                name += piece
        waiting = self.remotes.pop(name, None)
        if waiting is None or waiting.done():
            self.leave(sock)
        else:
            waiting.set_result(sock)

    def leave(self, sock: socket.socket) -> None:
        if sock.fileno() < 0:
            return
        if self.random.random() < 0.5:
            self.reset(sock)
        else:
            sock.close()

    async def serve(self, conn) -> None:
        """The session: one message, a dial, an answer, a relay."""
        try:
            message = await conn.recv()
            while message and len(message) < GREETING:
                more = await conn.recv()
                message = message + more if more else b""
            if not message:
                return
            if message[:1] == b"F":
                conn.refuse(b"no")
                return
            target = self.refusing if message[:1] == b"R" else self.listener
            remote = await self.rig.engine.dial(conn, target.getsockname(), None, 5)
            try:
                await conn.send(GRANTED)
            except BaseException:
                remote.close()
                raise
            handle = self.rig.engine.relay(conn, remote, None, message[GREETING:])
            if message[:1] == b"K":
                self.rig.engine.kill(handle)
        except OSError:
            pass
        except Exception as error:
            if type(error).__name__ != "ClientGone":
                self.errors.append(error)
        finally:
            conn.close()

    async def client(self, fate: str, name: bytes) -> None:
        loop = self.rig.loop
        sock = socket.socket()
        sock.setblocking(False)
        remote = self.remotes[name] = loop.create_future()
        try:
            await loop.sock_connect(sock, self.address)
            await self.live(sock, fate, name, remote)
        except ConnectionError:
            pass  # which is what they came for
        finally:
            self.leave(sock)
            self.remotes.pop(name, None)
            if remote.done():
                self.leave(remote.result())
            remote.cancel()

    async def live(self, sock: socket.socket, fate: str, name: bytes, remote) -> None:
        loop = self.rig.loop
        message = {"dials who refuses": b"R", "is refused": b"F", "is killed": b"K"}
        greeting = message.get(fate, b"C").ljust(GREETING)
        if fate == "connects and goes":
            return
        if fate == "half a message and goes":
            await loop.sock_sendall(sock, greeting[:2])
            return
        await loop.sock_sendall(sock, greeting + name)
        if fate == "leaves during the dial":
            await asyncio.sleep(self.random.random() * 0.002)
            return
        if await loop.sock_recv(sock, len(GRANTED)) != GRANTED or fate == "is killed":
            return
        await self.talk(sock, await remote, fate)

    async def talk(self, sock: socket.socket, remote: socket.socket, fate: str) -> None:
        loop = self.rig.loop
        await loop.sock_sendall(remote, bytes(1 + self.random.randrange(100_000)))
        if fate == "remote leaves":
            self.leave(remote)
        elif fate == "client leaves":
            return
        await loop.sock_sendall(sock, bytes(1 + self.random.randrange(100_000)))
        if self.random.random() < 0.5:
            await loop.sock_recv(sock, 1000)


# Of the native engine, on the loop's thread and on those that splice.
@pytest.mark.parametrize(
    ("engine", "settings"),
    [("native", {}), ("native", {"relay": "splice", "relay_threads": 2}), ("python", {})],
)
async def test_10_000_sessions_with_random_aborts(start_engine, reset, until, engine, settings):
    rig = start_engine(engine, handshake_timeout=5, linger_timeout=0.2, max_pipes=16, **settings)
    crowd = Crowd(rig, reset, seed=1)
    tasks, descriptors = asyncio.all_tasks(), rig.descriptors()
    started = 0

    async def worker() -> None:
        nonlocal started
        while started < SESSIONS:
            started += 1
            fate = crowd.random.choice(FATES)
            await asyncio.wait_for(crowd.client(fate, b"%08d" % started), 60)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    await rig.at_rest()
    crowd.close()
    counters = rig.engine.counters()
    assert crowd.errors == []
    assert counters["accepted"] == SESSIONS
    assert counters["relayed"] > SESSIONS / 4
    await until(lambda: len(rig.ends) >= counters["relayed"], "every end reported")
    assert len(rig.ends) == counters["relayed"]
    assert counters["pipes"] <= 16
    await until(lambda: asyncio.all_tasks() <= tasks, "no task left")
    await until(lambda: rig.descriptors() == descriptors, "no descriptor left")


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("native", {}),
        ("native", {"relay": "splice", "relay_threads": 2}),
        ("native", {"relay": "splice", "relay_threads": 2, "max_pipes": 0}),
        ("python", {}),
    ],
)
async def test_closed_and_accepted_in_one_turn(start_engine, reset, engine, settings):
    """While the loop's thread is busy elsewhere, a hundred clients go and a hundred others
    come, and get the same descriptors. Each has to hear its own remote and no other."""
    rig = start_engine(engine, **settings)
    count = 100
    waiting: list = []

    async def serve(conn) -> None:
        name = await conn.recv()
        near, far = socket.socketpair()
        waiting.append((name, rig.hold(far)))
        rig.engine.relay(conn, rig.engine.adopt(near), name, name)

    address = rig.listen(serve)
    clients: list[socket.socket] = []
    for round_number in range(8):
        old = [*clients, *(far for _, far in waiting)]
        waiting.clear()
        for number, sock in enumerate(old):
            if number % 2:
                reset(sock)
            else:
                sock.close()
        clients = []
        for number in range(count):
            sock = rig.hold(socket.create_connection(address))
            sock.sendall(b"client %d of round %d" % (number, round_number))
            clients.append(sock)
        # Only now does the loop get to see any of it.
        await rig.until(lambda: len(waiting) == count, "all clients served")
        for name, far in waiting:
            far.setblocking(False)
            assert await asyncio.wait_for(rig.loop.sock_recv(far, 100), 10) == name
            await rig.loop.sock_sendall(far, b"answer to " + name)
        for number, sock in enumerate(clients):
            sock.setblocking(False)
            got = await asyncio.wait_for(rig.loop.sock_recv(sock, 100), 10)
            assert got == b"answer to client %d of round %d" % (number, round_number)
        if round_number:
            await rig.ended(round_number * count)
    for sock in [*clients, *(far for _, far in waiting)]:
        sock.close()
    await rig.ended(8 * count)
    assert len({end[0] for end in rig.ends}) == 8 * count
    await rig.at_rest()


async def test_sessions_that_end_while_others_begin_on_their_descriptors(make_way, payload):
    """Half of the sessions stream, the other half come and go beside them."""
    rig = make_way(max_pipes=4)
    stop = asyncio.Event()

    async def stream(seed: int) -> None:
        relayed = rig.relay()
        data = payload(300_000, seed)
        while not stop.is_set():
            sending = asyncio.ensure_future(relayed.client.send(data))
            assert await relayed.remote.read(len(data)) == data
            await sending
        relayed.client.finish()
        relayed.remote.finish()

    async def come_and_go(seed: int) -> None:
        data = payload(200_000, -seed)
        for number in range(40):
            relayed = rig.relay(early=data)
            if number % 4:
                assert await relayed.remote.read(len(data)) == data
            if number % 3:
                rig.engine.kill(relayed.handle)
            for end in relayed[:2]:
                end.reset() if number % 2 else end.close()

    streams = [asyncio.ensure_future(stream(seed)) for seed in range(1, 5)]
    await asyncio.gather(*(come_and_go(seed) for seed in range(1, 5)))
    stop.set()
    await asyncio.gather(*streams)
    await rig.ended(4 + 4 * 40)
    await rig.at_rest()
