# Many logins at once, and guesses: what is worked out once for all of them, who waits for whom,
# who is refused, and what is left of it all at the end.

from __future__ import annotations

import asyncio
import threading

import pytest

from fastsocks import auth
from fastsocks.auth import CHECKS_MAX, CHECKS_PER_ADDRESS, WAITING_PER_ADDRESS, Users
from fastsocks.backoff import WINDOW
from fastsocks.errors import NotChecked
from support.users import HERE, RIGHT, THERE, WRONG

# -- many at once ------------------------------------------------------------


async def test_equal_logins_at_once_cost_one_hash(users, world):
    world.go_on.clear()
    logins = [asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT)) for _ in range(6)]
    await asyncio.sleep(0)
    logins.pop().cancel()  # who leaves takes nobody along
    world.go_on.set()
    assert await asyncio.gather(*logins) == [True] * 5
    assert len(world.checked) == 1


async def test_equal_failures_at_once_count_once(users, world):
    world.go_on.clear()
    logins = [asyncio.ensure_future(users.verify(HERE, b"alice", WRONG)) for _ in range(6)]
    await asyncio.sleep(0)
    world.go_on.set()
    assert await asyncio.gather(*logins) == [False] * 6
    assert await users.verify(HERE, b"alice", RIGHT)
    assert world.slept == []


async def test_a_failure_nobody_waited_for_counts(users, world, until):
    """Or leaving early would be the way to guess for nothing."""
    for guess in (b"1", b"2", b"3"):
        world.go_on.clear()
        login = asyncio.ensure_future(users.verify(HERE, b"alice", guess))
        await asyncio.sleep(0)
        login.cancel()
        world.go_on.set()
        await until(lambda: not users._checks, "the hash is worked out")
    assert await users.verify(HERE, b"alice", RIGHT)
    assert world.slept == [0.5]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::{:x}"], ids=["one", "network"])
async def test_one_client_cannot_take_all_the_checks(users, world, address):
    """Nor with all the addresses that one machine has."""
    world.go_on.clear()
    tries = [
        asyncio.ensure_future(users.verify((address.format(number), 1), b"alice", b"%d" % number))
        for number in range(CHECKS_PER_ADDRESS + WAITING_PER_ADDRESS)
    ]
    await asyncio.sleep(0)
    assert len(users._checks) == CHECKS_PER_ADDRESS, "no more before the first have failed"
    with pytest.raises(NotChecked, match="too many"):
        async with asyncio.timeout(5):
            await users.verify((address.format(0xFFFF), 1), b"alice", b"one more")
    other = asyncio.ensure_future(users.verify(THERE, b"alice", RIGHT))
    await asyncio.sleep(0)
    world.go_on.set()
    assert await other
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert all(end is False or isinstance(end, NotChecked) for end in ends)
    assert not users._checks


async def test_many_users_behind_one_address_are_all_let_in(world, file, hashed):
    """At once, as after a restart; nobody has failed."""
    names = [f"user{number}".encode() for number in range(40)]
    file.write_text("".join(f"{name.decode()}:{hashed(name)}\n" for name in names))
    users = Users({}, str(file), world.clock, world.sleep)
    assert all(await asyncio.gather(*(users.verify(HERE, name, name) for name in names)))
    assert world.slept == []
    users.close()


async def test_a_panic_in_a_hash_is_no_failed_login_and_keeps_no_place(
    users, world, monkeypatch, caplog
):
    """Whoever has the right password does not wait for it later, and the log has one line."""

    class Panic(BaseException):
        pass

    def panics(stored, secret):
        raise Panic(secret)

    with monkeypatch.context() as patch:
        patch.setattr(auth, "check", panics)
        for _ in range(9):
            with pytest.raises(NotChecked, match="could not be checked"):
                await users.verify(HERE, b"alice", RIGHT)
    assert caplog.text.count("Panic") == 1
    assert RIGHT.decode() not in caplog.text
    assert await users.verify(HERE, b"alice", RIGHT)
    assert world.slept == []


async def test_a_busy_pool_refuses_and_recovers(users, world):
    world.go_on.clear()
    tries = [
        asyncio.ensure_future(users.verify((f"10.0.0.{number}", 1), b"alice", b"%d" % number))
        for number in range(CHECKS_MAX)
    ]
    await asyncio.sleep(0)
    with pytest.raises(NotChecked, match="too many"):
        await users.verify(HERE, b"alice", RIGHT)
    world.go_on.set()
    await asyncio.gather(*tries)
    assert await users.verify(HERE, b"alice", RIGHT)
    assert len(world.checked) == CHECKS_MAX + 1


async def test_a_hash_that_cannot_be_worked_out_is_a_refusal(users, monkeypatch, caplog):
    def no_memory(stored, secret):
        raise MemoryError(secret)

    monkeypatch.setattr(auth, "check", no_memory)
    with pytest.raises(NotChecked, match="could not be checked"):
        await users.verify(HERE, b"alice", RIGHT)
    assert "MemoryError" in caplog.text
    assert RIGHT.decode() not in caplog.text


# -- back-off ----------------------------------------------------------------


async def test_who_came_while_too_many_waited_is_let_in_once_the_user_has_logged_in(
    users, world, monkeypatch
):
    """As the many connections of a browser do, whose user has mistyped before."""
    for guess in (b"1", b"2", b"3", b"4"):
        assert not await users.verify(HERE, b"alice", guess)
    late = asyncio.Event()

    async def sleep(seconds):
        await (late.wait() if seconds > 1 else world.sleep(seconds))

    monkeypatch.setattr(users, "_sleep", sleep)
    tries = [asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT)) for _ in range(30)]
    assert await tries[0]
    late.set()
    assert all(await asyncio.gather(*tries))


async def test_an_old_failure_is_no_reason_to_wait(users, world):
    for user in (b"alice", b"bob"):
        assert not await users.verify(HERE, user, b"wrong")
    assert not users.check_now(HERE, b"alice", RIGHT)
    world.now += WINDOW + 1
    assert await users.verify(HERE, b"alice", RIGHT)
    assert users.check_now(HERE, b"alice", RIGHT)


async def test_only_who_failed_waits(users, world):
    for guess in (b"1", b"2", b"3"):
        assert not await users.verify(HERE, b"alice", guess)
    assert world.slept == []
    world.awake.clear()
    culprit = asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT))
    await asyncio.sleep(0)
    assert world.slept == [0.5]
    assert await users.verify(THERE, b"alice", RIGHT)
    assert not culprit.done()
    assert users.check_now(HERE, b"alice", RIGHT) is False  # though it is remembered by now
    world.awake.set()
    assert await culprit
    assert users.check_now(HERE, b"alice", RIGHT) is True


async def test_guesses_in_parallel_are_not_even_looked_at(users, world):
    for guess in range(7):
        assert not await users.verify(HERE, b"alice", b"%d" % guess)
    world.now += 20
    looked_at = len(world.checked)
    tries = [users.verify(HERE, b"alice", RIGHT) for _ in range(50)]
    told = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, NotChecked) for one in told) == 48
    assert max(world.slept) <= 5
    assert len(world.checked) <= looked_at + 2


async def test_passwords_in_clear_are_guarded_as_well(world):
    users = Users({"me": "secret"}, None, world.clock, world.sleep)
    for _ in range(3):
        assert users.check_now(HERE, b"me", WRONG) is False
        assert not await users.verify(HERE, b"me", WRONG)
    assert users.check_now(HERE, b"me", b"secret") is False
    assert users.check_now(THERE, b"me", b"secret") is True
    assert await users.verify(HERE, b"me", b"secret")
    assert world.slept == [0.5]
    assert users.check_now(HERE, b"me", b"secret") is True


# -- its threads -------------------------------------------------------------


async def test_the_pool_ends_with_the_users(users, until):
    assert await users.verify(HERE, b"alice", RIGHT)
    assert pool_threads()
    users.close()
    await until(lambda: not pool_threads(), "its threads have ended")


def pool_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("fastsocks-auth")]


def test_the_loop_may_be_gone_before_a_check_ends(world, file, until, caplog):
    """Told to stop in the middle of a login: nothing to be read in the log about it."""
    world.go_on.clear()

    async def stop_early():
        users = Users({}, str(file), world.clock, world.sleep)
        login = asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT))
        await until(lambda: world.checked, "its check has begun")
        login.cancel()
        users.close()

    asyncio.run(stop_early())
    threads = pool_threads()
    assert threads
    world.go_on.set()
    for thread in threads:
        thread.join(30)
    assert caplog.text == ""
