# Makes native engines that nobody closes, with clients in the middle of something, in cycles
# for the garbage collector, and prints how many of their threads and descriptors are left.
# With PYTHONMALLOC=debug, what was freed too early is not what it was.
#
#     forgotten.py

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

from fastsocks import engine as contract


class Holder:
    engine: Any
    myself: Any


async def waits_for_more(client: contract.Conn) -> None:
    try:
        await client.send(b"hello")
        await asyncio.sleep(60)
    except OSError:
        await client.recv()
    finally:
        client.close()


def forget_one() -> None:
    """The engine's own cycle is with its loop; a younger one is what the collector takes
    apart first, and clears all that it leads to before anything is freed."""
    loop = asyncio.SelectorEventLoop()
    engine = contract.choose("native", loop, contract.Settings(), print)
    for serve in (waits_for_more, None):
        near, far = socket.socketpair()
        far.close()  # which nobody is told of any more
        client = engine.adopt(near)
        if serve is not None:
            engine.visit(serve(client)).begin()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    younger = Holder()
    younger.myself, younger.engine = younger, engine


gc.disable()
descriptors = len(os.listdir("/proc/self/fd"))
for _ in range(20):
    forget_one()
    gc.collect()
print(len(os.listdir("/proc/self/task")) - 1, len(os.listdir("/proc/self/fd")) - descriptors)
