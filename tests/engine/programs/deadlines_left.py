# Four connections whose deadline passes at one moment; what the first of them resumes ends the
# loop, as a SystemExit does. Prints how many have had their deadline when the loop has run again.
#
#     deadlines_left.py ENGINE

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from fastsocks import engine as contract

COUNT = 4


async def session(conn: contract.Conn, expired: list[contract.Conn]) -> None:
    try:
        await conn.recv()
    except TimeoutError:
        expired.append(conn)
        if len(expired) == 1:
            raise SystemExit from None


def main() -> None:
    loop = asyncio.new_event_loop()
    engine = contract.choose(sys.argv[1], loop, contract.Settings(), print)
    expired: list[contract.Conn] = []
    sockets, tasks = [], []
    for _ in range(COUNT):
        ours, its = socket.socketpair()
        sockets.append(ours)
        conn = engine.adopt(its)
        conn.deadline(0.3)
        tasks.append(loop.create_task(session(conn, expired)))
    with contextlib.suppress(SystemExit):
        loop.run_forever()
    loop.run_until_complete(asyncio.wait(tasks, timeout=10))
    engine.close()
    print(len(expired))


main()
