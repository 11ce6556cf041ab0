# So many at once for each client: the others of the same one wait in turn, and one that gives
# up takes no place with it.

from __future__ import annotations

import asyncio

import pytest

from fastsocks.places import Places


async def test_one_clients_crowd_waits_and_no_other_for_it(until):
    places, go_on, inside = Places(2, 3), asyncio.Event(), []

    async def one(client):
        async with places.one(client):
            inside.append(client)
            await go_on.wait()

    crowd = [asyncio.ensure_future(one("crowd")) for _ in range(5)]
    await until(lambda: inside == ["crowd"] * 2, "two are in")
    assert places.is_full("crowd")
    other = asyncio.ensure_future(one("other"))
    await until(lambda: inside[2:] == ["other"], "another client is in")
    go_on.set()
    await asyncio.gather(*crowd, other)
    assert len(inside) == 6
    assert not places.is_full("crowd")


async def test_who_gives_up_while_it_waits_keeps_no_place():
    places, entered = Places(1, 5), []

    async def one(name):
        async with places.one("client"):
            entered.append(name)

    async with places.one("client"):
        tries = [asyncio.ensure_future(one(number)) for number in range(3)]
        await asyncio.sleep(0)
        tries[0].cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await tries[0]
    await asyncio.gather(*tries[1:])
    assert entered == [1, 2]
    assert not places.is_full("client")
