# Shows that a visit, Task or not, is to its coroutine what a Task would be: values and
# errors arrive where it waits, whatever it waits for, and cancelling ends it.
#
# Must not know: which engine it is, but for the one promise that only the native one makes.

from __future__ import annotations

import asyncio
import gc

import pytest

from fastsocks.waits import within


class Visited:
    """A visit of an engine, and what its coroutine has said on the way."""

    def __init__(self, rig) -> None:
        self.rig = rig
        self.far, self.conn = rig.connected()
        self.said: list[object] = []
        self.over = asyncio.Event()

    def begin(self, stages):
        async def session() -> None:
            try:
                await stages(self)
            except asyncio.CancelledError:
                self.said.append("cancelled")
                raise
            finally:
                self.conn.close()
                self.over.set()

        self.visit = self.rig.engine.visit(session())
        self.visit.begin()

    async def told(self) -> list[object]:
        async with asyncio.timeout(10):
            await self.over.wait()
        return self.said


@pytest.fixture
async def visited(make_engine):
    return Visited(make_engine())


async def echo(visited: Visited) -> None:
    data = await visited.conn.recv()
    visited.said.append(data)
    await visited.conn.send(data)


async def test_waits_for_its_engine(visited):
    visited.begin(echo)
    await asyncio.sleep(0)
    await visited.far.send(b"ping")
    assert await visited.far.recv() == b"ping"
    assert await visited.told() == [b"ping"]


async def test_no_task_while_it_waits_for_its_engine(start_engine):
    visited = Visited(start_engine("native"))
    tasks = asyncio.all_tasks()
    visited.begin(echo)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    await visited.far.send(b"ping")
    assert await visited.told() == [b"ping"]
    assert visited.visit.task is None


async def test_nothing_to_wait_for(visited):
    async def stages(visited: Visited) -> None:
        visited.said.append(visited.conn.recv_now())

    visited.begin(stages)
    assert await visited.told() == [None]


async def nothing() -> None:
    await asyncio.sleep(0)


async def a_moment() -> None:
    await asyncio.sleep(0.001)


async def another_task() -> None:
    await asyncio.ensure_future(a_moment())


@pytest.mark.parametrize("elsewhere", [nothing, a_moment, another_task])
async def test_waits_elsewhere_too(visited, elsewhere):
    async def stages(visited: Visited) -> None:
        await elsewhere()
        assert asyncio.current_task() is visited.visit.task is not None
        await echo(visited)
        await elsewhere()
        await echo(visited)

    visited.begin(stages)
    for word in (b"one", b"two"):
        await visited.far.send(word)
        assert await visited.far.recv() == word
    assert await visited.told() == [b"one", b"two"]


async def test_error_of_the_engine(visited, reset):
    async def stages(visited: Visited) -> None:
        with pytest.raises(ConnectionResetError):
            await visited.conn.recv()
        visited.said.append("caught")

    visited.begin(stages)
    await asyncio.sleep(0)
    reset(visited.far.sock)
    assert await visited.told() == ["caught"]


async def test_deadline(visited):
    async def stages(visited: Visited) -> None:
        visited.conn.deadline(0.01)
        with pytest.raises(TimeoutError):
            await visited.conn.recv()
        visited.said.append("caught")

    visited.begin(stages)
    assert await visited.told() == ["caught"]


async def test_error_from_elsewhere_at_the_first_wait(visited):
    failing = asyncio.get_running_loop().create_future()

    async def stages(visited: Visited) -> None:
        with pytest.raises(LookupError):
            await failing
        await echo(visited)

    visited.begin(stages)
    await asyncio.sleep(0)
    failing.set_exception(LookupError())
    await visited.far.send(b"and on")
    assert await visited.told() == [b"and on"]


async def test_time_limit(visited):
    async def stages(visited: Visited) -> None:
        with pytest.raises(TimeoutError):
            async with within(0.01):
                assert asyncio.current_task() is not None
                await asyncio.Event().wait()
        async with within(None):
            await echo(visited)

    visited.begin(stages)
    await visited.far.send(b"and on")
    assert await visited.told() == [b"and on"]


async def recv(visited: Visited) -> None:
    await visited.conn.recv()


async def recv_as_a_task(visited: Visited) -> None:
    await asyncio.sleep(0)
    await visited.conn.recv()


async def event(visited: Visited) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("wait", [recv, recv_as_a_task, event])
async def test_cancelled_by_itself(visited, wait):
    """Or by what it has called: it ends where it waits next."""

    async def stages(visited: Visited) -> None:
        visited.visit.cancel()
        await wait(visited)
        visited.said.append("went on")

    visited.begin(stages)
    assert await visited.told() == ["cancelled"]


async def test_cancelled_by_itself_with_what_it_waits_for(visited):
    inner = []

    async def stages(visited: Visited) -> None:
        visited.visit.cancel()
        inner.append(asyncio.ensure_future(asyncio.Event().wait()))
        await inner[0]

    visited.begin(stages)
    assert await visited.told() == ["cancelled"]
    assert inner[0].cancelled()


async def dial(visited: Visited) -> None:
    await visited.rig.engine.dial(visited.conn, visited.hole, None, 0)


@pytest.mark.parametrize("wait", [recv, recv_as_a_task, event, dial])
async def test_cancelled_where_it_waits(visited, wait, black_hole):
    visited.hole = black_hole
    visited.begin(wait)
    for _ in range(5):
        await asyncio.sleep(0)
    visited.visit.cancel()
    assert await visited.told() == ["cancelled"]
    visited.visit.cancel()
    assert visited.said == ["cancelled"]


async def test_cancelled_and_yet_goes_on(visited):
    async def stages(visited: Visited) -> None:
        try:
            await visited.conn.recv()
        except asyncio.CancelledError:
            await echo(visited)

    visited.begin(stages)
    await asyncio.sleep(0)
    visited.visit.cancel()
    await asyncio.sleep(0)
    await visited.far.send(b"last words")
    assert await visited.told() == [b"last words"]


async def test_engine_that_closes(visited):
    async def stages(visited: Visited) -> None:
        with pytest.raises(ConnectionAbortedError):
            await visited.conn.recv()
        visited.said.append("caught")

    visited.begin(stages)
    await asyncio.sleep(0)
    visited.rig.engine.close()
    assert await visited.told() == ["caught"]


async def test_error_of_its_own_is_reported_once(visited):
    """None escapes from a session; should one, it ends nothing else."""
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))

    async def stages(visited: Visited) -> None:
        await visited.conn.recv()
        raise LookupError("a mistake")

    visited.begin(stages)
    await asyncio.sleep(0)
    await visited.far.send(b"go")
    await visited.told()
    visited.visit = None
    await asyncio.sleep(0)
    gc.collect()  # an unwatched Task tells of its error at its very end
    assert [type(what["exception"]) for what in reported] == [LookupError]
    another = Visited(visited.rig)
    another.begin(echo)
    await another.far.send(b"served")
    assert await another.told() == [b"served"]


async def test_cancelled_before_it_has_begun(make_engine):
    visited = Visited(make_engine())

    async def session() -> None:
        visited.said.append("it runs")

    visit = visited.rig.engine.visit(session())
    visit.begin()
    visit.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert visited.said == []
    visited.conn.close()


async def test_cancelled_between_an_end_and_its_notice(visited):
    """What it waited for is over, but it has not gone on yet."""

    async def stages(visited: Visited) -> None:
        try:
            await visited.conn.recv()
        finally:
            visited.said.append("was waiting")
        visited.said.append("went on")

    visited.begin(stages)
    await asyncio.sleep(0)
    visited.conn.close()
    visited.visit.cancel()
    assert await visited.told() == ["was waiting", "cancelled"]
