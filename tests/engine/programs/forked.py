# Relays a session, forks a child that ends as a Python program does, with its copy of the engine,
# and then says the last words on both sides. Prints as JSON what came and how the session ended.
#
#     forked.py ENGINE

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from fastsocks import engine as contract

SECONDS = 30


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    return near, far


async def whole(sock: socket.socket) -> str:
    said = b""
    try:
        while more := await asyncio.get_running_loop().sock_recv(sock, 100):
            said += more
    except ConnectionResetError:
        return f"{said.decode()} and a reset"
    return said.decode()


async def main() -> None:
    loop = asyncio.get_running_loop()
    ends: list[contract.End] = []
    engine = contract.choose(sys.argv[1], loop, contract.Settings(), ends.extend)
    (client, near), (remote, far) = pair(), pair()
    engine.relay(engine.adopt(near), engine.adopt(far), "flow", b"")
    client.send(b"first")
    assert await loop.sock_recv(remote, 100) == b"first"
    client.send(b"second")  # of which the child's copy of the engine must take nothing
    child = os.fork()
    if child == 0:
        raise SystemExit
    os.waitpid(child, 0)
    remote.send(b"last words")
    for sock in (remote, client):
        sock.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(SECONDS):
        came = [await whole(client), await whole(remote)]
        while not ends:
            await asyncio.sleep(0.01)
    print(json.dumps({"came": came, "ended": ends[0][3]}), flush=True)
    engine.close()


# Not uvloop's, which a forked child may not even end.
asyncio.run(main())
