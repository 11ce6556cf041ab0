# Listens, forks a child that stops listening and leaves a client with its copy of the engine, and
# serves clients that come after. Prints "served" once one is.
#
#     forked_listener.py ENGINE

from __future__ import annotations

import asyncio
import os
import socket
import sys

from fastsocks import engine as contract

SECONDS = 30


async def main() -> None:
    loop = asyncio.get_running_loop()
    introduced: list[contract.Conn] = []
    engine = contract.choose(sys.argv[1], loop, contract.Settings(), lambda ended: None)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    engine.listen(listener, introduced.append)

    def come() -> socket.socket:
        client = socket.create_connection(address)
        client.send(b"x")
        return client

    async with asyncio.timeout(SECONDS):
        with come() as first:
            while not introduced:
                await asyncio.sleep(0.01)
            child = os.fork()
            if child == 0:
                engine.stop_listening()
                introduced[0].close()
                os._exit(0)
            os.waitpid(child, 0)
            receiving = asyncio.ensure_future(introduced[0].recv())
            assert await receiving == b"x"
            first.send(b"again")
            assert await introduced[0].recv() == b"again"
        with come():
            while len(introduced) < 2:
                await asyncio.sleep(0.01)
    print("served", flush=True)
    engine.close()


# Not uvloop's, which a forked child may not even end.
asyncio.run(main())
