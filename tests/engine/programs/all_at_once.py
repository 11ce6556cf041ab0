# Relays sessions whose ends all do something while this process is stopped, time and again, so
# that each time all of it is there at once when it goes on. Prints as JSON what the other ends
# got, by what the first ones did, and then the engine's counters.
#
#     all_at_once.py ENGINE auto|inline|off|denied
#
# inline: on the loop's thread; off: told to do without io_uring; denied: where the kernel
# refuses it, as in most containers.

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import errno
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fastsocks import engine as contract

EACH = 6  # sessions of a kind
WARM = 40  # octets, one by one, after which a session is on a relay thread
STOPS = 5
WORD = bytes(range(100))
ROOM = 4096  # what a batch reads of one session
FULL = random.Random(0).randbytes(ROOM)
LONG = random.Random(1).randbytes(ROOM + 1000)
URGENT = b"\xff"
PATIENCE = 30.0

Act = Callable[[socket.socket, socket.socket], None]


def say(octets: bytes) -> Act:
    return lambda client, remote: client.sendall(octets)


def answer_as_well(client: socket.socket, remote: socket.socket) -> None:
    client.sendall(WORD)
    remote.sendall(WORD)


def say_and_end(client: socket.socket, remote: socket.socket) -> None:
    client.sendall(WORD)
    client.shutdown(socket.SHUT_WR)


def say_and_reset(client: socket.socket, remote: socket.socket) -> None:
    client.sendall(WORD)
    reset(client, remote)


def reset(client: socket.socket, remote: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def say_to_nobody(client: socket.socket, remote: socket.socket) -> None:
    client.sendall(WORD)
    reset(remote, client)


def say_with_urgency(client: socket.socket, remote: socket.socket) -> None:
    client.sendall(WORD)
    client.send(URGENT, socket.MSG_OOB)
    client.sendall(WORD)


# What is done at each stop, and at the last.
ACTS: dict[str, tuple[Act, Act]] = {
    "word": (say(WORD), say(WORD)),
    "both": (answer_as_well, answer_as_well),
    "as long as is read": (say(FULL), say(FULL)),
    "longer": (say(LONG), say(LONG)),
    "to one who is slow": (say(FULL), say(FULL)),
    "end": (say(WORD), say_and_end),
    "reset": (say(WORD), say_and_reset),
    "reset without a word": (say(WORD), reset),
    "to one who resets": (say(WORD), say_to_nobody),
    "urgent": (say(WORD), say_with_urgency),
}
# What then has to come, and where; of the others, all that was said by their client, and an end.
EXPECTED = {
    "word": ("remote", STOPS * WORD),
    "both": ("client", STOPS * WORD),
    "as long as is read": ("remote", STOPS * FULL),
    "longer": ("remote", STOPS * LONG),
    "to one who is slow": ("remote", STOPS * FULL),
    "urgent": ("remote", (STOPS + 1) * WORD),
    "to one who resets": ("client", b"?"),
}
ALL = ("remote", STOPS * WORD + b"?")


@dataclasses.dataclass
class Session:
    kind: str
    client: socket.socket
    remote: socket.socket
    near: socket.socket  # the proxy's, to the client
    far: socket.socket


def connected(narrow: bool) -> tuple[socket.socket, socket.socket]:
    end = socket.socket()
    with socket.socket() as listener:
        if narrow:
            for sock in (listener, end):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        end.connect(listener.getsockname())
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.settimeout(PATIENCE)
        return end, listener.accept()[0]


def make(kind: str) -> Session:
    client, near = connected(narrow=False)
    remote, far = connected(narrow=kind == "to one who is slow")
    return Session(kind, client, remote, near, far)


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def outcome(session: Session) -> str:
    """How many of the octets came, and how that ended."""
    whose, expected = EXPECTED.get(session.kind, ALL)
    sock, got = getattr(session, whose), b""
    while len(got) < len(expected):
        try:
            piece = sock.recv(1 << 16)
        except ConnectionResetError:
            return f"{whose}: {len(got)}, reset"
        if not piece:
            return f"{whose}: {len(got)}, end"
        got += piece.replace(URGENT, b"") if session.kind == "urgent" else piece
        if not expected.startswith(got):
            return f"{whose}: wrong octets"
    return f"{whose}: {len(got)}"


def drive(sessions: list[Session], proxy: int) -> None:
    """All ends, in a process that is not stopped."""
    for _ in range(WARM):
        for session in sessions:
            session.client.sendall(b"w")
        for session in sessions:
            assert session.remote.recv(1) == b"w"
    for stop in range(STOPS):
        os.kill(proxy, signal.SIGSTOP)
        while not is_stopped(proxy):
            time.sleep(0.001)
        for session in sessions:
            ACTS[session.kind][stop == STOPS - 1](session.client, session.remote)
        os.kill(proxy, signal.SIGCONT)
        for session in sessions:
            if session.kind == "both":  # so that the next stop finds all of this one relayed
                session.remote.recv(len(WORD), socket.MSG_WAITALL)
    outcomes: dict[str, set[str]] = {}
    for session in sessions:
        outcomes.setdefault(session.kind, set()).add(outcome(session))
    print(json.dumps({kind: sorted(found) for kind, found in outcomes.items()}), flush=True)


async def relay(name: str, sessions: list[Session], how: str, driver: int) -> None:
    settings = contract.Settings(io_uring=how != "off", relay_threads=int(how != "inline"))
    loop = asyncio.get_running_loop()
    engine = contract.choose(name, loop, settings, lambda ended: None)
    for session in sessions:
        engine.relay(engine.adopt(session.near), engine.adopt(session.far), session, b"")
    await asyncio.to_thread(os.waitpid, driver, 0)
    print(json.dumps(engine.counters()))
    engine.close()


def deny_io_uring() -> None:
    """A filter of system calls (seccomp(2)) that lets all pass but this one."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_RET
    allow, error = 0x7FFF0000, 0x00050000 | errno.EPERM
    steps = [(load, 0, 0, 0), (equal, 0, 1, 425), (give, 0, 0, error), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, filtered, program, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    engine, how = sys.argv[1], sys.argv[2]
    if how == "denied":
        deny_io_uring()
    sessions = [make(kind) for kind in ACTS for _ in range(EACH)]
    proxy = os.getpid()
    driver = os.fork()
    if not driver:
        for session in sessions:
            session.near.close()
            session.far.close()
        drive(sessions, proxy)
        os._exit(0)
    for session in sessions:
        session.client.close()
        session.remote.close()
    asyncio.run(relay(engine, sessions, how, driver))


main()
