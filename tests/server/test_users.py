# Users without a server: what a slow hash costs and when it costs nothing, who waits for
# whom, and what a change of the file does. Clock, sleep and hash are the test's.

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from fastsocks import auth, passwords
from fastsocks.auth import CHECKS_MAX, REMEMBERED, Users, choose_method
from fastsocks.backoff import WINDOW
from fastsocks.errors import ConfigError, TooManyLogins

HERE, THERE = ("192.0.2.1", 1234), ("198.51.100.1", 1234)
RIGHT, WRONG = b"correct horse", b"battery staple"


class World:
    """The time, those who sleep, and the hashes that were worked out."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.awake = asyncio.Event()
        self.awake.set()
        self.checked: list[tuple[str, bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.awake.wait()

    def check(self, stored: str, secret: bytes) -> bool:
        self.checked.append((stored, secret))
        assert self.go_on.wait(30)
        return passwords.check(stored, secret)


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(auth, "check", made.check)
    yield made
    made.go_on.set()


@pytest.fixture
def file(tmp_path, hashed):
    path = tmp_path / "users"
    path.write_text(f"alice:{hashed(RIGHT)}\nbob:{hashed(b'bob')}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def users(world, file):
    made = Users({}, str(file), world.clock, world.sleep)
    yield made
    made.close()


def change(file, text: str) -> None:
    """As passwd does, so that time, size or inode differ."""
    fresh = file.with_name("fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    os.replace(fresh, file)
    stamp = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(stamp, stamp))


# -- methods -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "login_needed", "strict", "chosen"),
    [
        (b"\x00", False, False, 0),
        (b"\x00\x02", False, False, 0),
        (b"\x02\x00", False, True, 0),
        (b"\x02", False, False, 2),
        (b"\x02", False, True, None),
        (b"\x01", False, False, None),
        (b"", False, False, None),
        (b"\x00", True, False, None),
        (b"\x00\x02", True, False, 2),
        (b"\x02\x00", True, True, 2),
        (b"\x01\x03\xff", True, False, None),
        (bytes(range(256)), True, False, 2),
    ],
)
def test_who_needs_a_login_never_gets_a_method_without_one(offered, login_needed, strict, chosen):
    assert choose_method(offered, login_needed, strict) == chosen


# -- passwords ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password", "granted"),
    [
        (b"alice", RIGHT, True),
        (b"alice", WRONG, False),
        (b"alice", b"", False),
        (b"alice", RIGHT + b"\0", False),
        (b"bob", RIGHT, False),
        (b"Alice", RIGHT, False),
        (b"nobody", RIGHT, False),
        (b"", b"", False),
        (b"\xff" * 255, b"\xff" * 255, False),
        (b"alice:", RIGHT, False),
    ],
)
async def test_only_the_right_password_of_the_right_user_is_granted(users, user, password, granted):
    assert users.check_now(HERE, user, password) is False
    assert await users.verify(HERE, user, password) is granted


async def test_unknown_users_take_the_same_path(users, world):
    """One hash of the same cost, whoever he says he is; and its password opens nothing."""
    for user in (b"alice", b"nobody"):
        assert not await users.verify(HERE, user, WRONG)
    (known, _), (decoy, _) = world.checked
    assert passwords.cost(known) == passwords.cost(decoy)
    assert not await users.verify(THERE, b"nobody", RIGHT)
    assert not await users.verify(THERE, b"nobody", b"bob")


async def test_the_decoy_is_of_the_usual_cost(world, tmp_path, hashed):
    path = tmp_path / "users"
    rare, usual = hashed(b"x", ln=5), [hashed(b"x") for _ in range(3)]
    path.write_text("\n".join(f"u{n}:{one}" for n, one in enumerate([rare, *usual])))
    users = Users({}, str(path), world.clock)
    assert not await users.verify(HERE, b"nobody", WRONG)
    assert passwords.cost(world.checked[0][0]) == passwords.cost(usual[0])
    users.close()


async def test_an_empty_file_lets_nobody_in(world, tmp_path):
    (tmp_path / "users").touch()
    users = Users({}, str(tmp_path / "users"), world.clock)
    assert users
    assert not await users.verify(HERE, b"", b"")


async def test_passwords_in_clear_beside_a_file(world, file):
    users = Users({"carol": "clear"}, str(file), world.clock)
    assert users.check_now(HERE, b"carol", b"clear") is True
    assert await users.verify(HERE, b"alice", RIGHT)
    assert not await users.verify(HERE, b"carol", WRONG)
    # It took a hash as well, or the answer's time would tell who is in which place.
    assert len(world.checked) == 2
    users.close()


def test_nobody_is_in_two_places(file):
    with pytest.raises(ConfigError, match="alice"):
        Users({"alice": "clear"}, str(file))


# -- what is remembered ------------------------------------------------------


async def test_a_right_password_costs_one_hash(users, world):
    assert await users.verify(HERE, b"alice", RIGHT)
    for client in (HERE, THERE):
        assert users.check_now(client, b"alice", RIGHT) is True
        assert await users.verify(client, b"alice", RIGHT)
    assert len(world.checked) == 1


async def test_what_is_remembered_is_one_password_of_one_user(users):
    assert await users.verify(HERE, b"alice", RIGHT)
    for user, password in ((b"alice", WRONG), (b"bob", RIGHT), (b"alice", b""), (b"", RIGHT)):
        assert users.check_now(THERE, user, password) is False
        assert not await users.verify(THERE, user, password)
    assert users.check_now(HERE, b"alice", RIGHT) is True


async def test_a_wrong_password_is_not_remembered_as_anything(users, world):
    for _ in range(2):
        assert not await users.verify(HERE, b"alice", WRONG)
        assert users.check_now(HERE, b"alice", WRONG) is False
    assert len(world.checked) == 2


async def test_it_is_forgotten_in_time(users, world):
    assert await users.verify(HERE, b"alice", RIGHT)
    world.now += REMEMBERED - 1
    assert users.check_now(HERE, b"alice", RIGHT) is True
    world.now += 2
    assert users.check_now(HERE, b"alice", RIGHT) is False
    assert await users.verify(HERE, b"alice", RIGHT)


async def test_no_password_is_kept_in_the_clear(users):
    assert await users.verify(HERE, b"alice", RIGHT)
    assert RIGHT not in repr(vars(users)).encode()


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
        for number in range(CHECKS_MAX // 2)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyLogins, match="too many"):
        async with asyncio.timeout(5):
            await users.verify((address.format(0xFFFF), 1), b"alice", b"one more")
    other = asyncio.ensure_future(users.verify(THERE, b"alice", RIGHT))
    await asyncio.sleep(0)
    world.go_on.set()
    assert await other
    assert not any(await asyncio.gather(*tries))
    assert not users._checks


async def test_a_busy_pool_refuses_and_recovers(users, world):
    world.go_on.clear()
    tries = [
        asyncio.ensure_future(users.verify((f"10.0.0.{number}", 1), b"alice", b"%d" % number))
        for number in range(CHECKS_MAX)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyLogins, match="too many"):
        await users.verify(HERE, b"alice", RIGHT)
    world.go_on.set()
    await asyncio.gather(*tries)
    assert await users.verify(HERE, b"alice", RIGHT)
    assert len(world.checked) == CHECKS_MAX + 1


async def test_a_hash_that_cannot_be_worked_out_is_a_refusal(users, monkeypatch, caplog):
    def no_memory(stored, secret):
        raise MemoryError(secret)

    monkeypatch.setattr(auth, "check", no_memory)
    assert not await users.verify(HERE, b"alice", RIGHT)
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
    monkeypatch.setattr(
        users, "_sleep", lambda seconds: late.wait() if seconds > 1 else world.sleep(seconds)
    )
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
    assert sum(isinstance(one, TooManyLogins) for one in told) == 48
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


# -- the file changes --------------------------------------------------------


async def test_a_new_password_holds_from_the_next_second(users, world, file, hashed):
    assert await users.verify(HERE, b"alice", RIGHT)
    assert await users.verify(HERE, b"bob", b"bob")
    change(file, f"alice:{hashed(b'new')}\n")
    assert users.check_now(HERE, b"alice", RIGHT) is True  # not looked at yet
    world.now += 1
    assert users.check_now(HERE, b"alice", RIGHT) is False
    assert not await users.verify(HERE, b"alice", RIGHT)
    assert await users.verify(HERE, b"alice", b"new")
    assert users.check_now(THERE, b"bob", b"bob") is False
    assert not await users.verify(HERE, b"bob", b"bob")


async def test_a_file_that_stays_is_read_once(users, world, monkeypatch):
    monkeypatch.setattr(auth.users_file, "read", lambda path: pytest.fail("read again"))
    assert await users.verify(HERE, b"alice", RIGHT)
    for _ in range(5):
        world.now += 1
        assert users.check_now(HERE, b"alice", RIGHT) is True


async def test_who_is_removed_while_he_is_checked_stays_out(users, world, file, hashed):
    world.go_on.clear()
    login = asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT))
    await asyncio.sleep(0)
    change(file, f"bob:{hashed(b'bob')}\n")
    assert users.reload()
    world.go_on.set()
    assert not await login
    assert users.check_now(THERE, b"alice", RIGHT) is False


@pytest.mark.parametrize("broken", ["alice:secret\n", "alice\n", "# ours\n\nbob:{SHA}abc=\n", None])
async def test_a_broken_file_leaves_the_old_users(users, world, file, caplog, broken):
    assert await users.verify(HERE, b"alice", RIGHT)
    caplog.set_level("INFO")
    if broken is None:
        file.unlink()
    else:
        change(file, broken)
    for _ in range(5):
        world.now += 1
        assert users.check_now(HERE, b"alice", RIGHT) is True
    assert await users.verify(THERE, b"bob", b"bob")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "fastsocks.auth"]
    assert str(file) in line
    if broken is not None:
        assert f"line {len(broken.splitlines())}: " in line
    assert "stay in force" in line
    assert "secret" not in line


async def test_a_mended_file_is_taken(users, world, file, hashed):
    change(file, "alice")
    world.now += 1
    assert users.check_now(HERE, b"alice", RIGHT) is False
    change(file, f"alice:{hashed(b'new')}\n")
    world.now += 1
    assert await users.verify(HERE, b"alice", b"new")


def test_reload_tells_whether_it_worked(users, file, caplog):
    caplog.set_level("INFO")
    assert users.reload()
    assert "with 2 in it" in caplog.text
    change(file, "alice:secret")
    assert not users.reload()


def test_a_file_anyone_may_read_is_told(file, caplog):
    file.chmod(0o644)
    Users({}, str(file))
    assert "anyone on this machine may read it" in caplog.text
    assert f"chmod o-r {file}" in caplog.text


def test_a_file_without_users_is_told(file, caplog):
    file.write_text("# nobody yet\n")
    assert Users({}, str(file))
    assert "no users" in caplog.text


async def test_the_pool_ends_with_the_users(users, world, until):
    assert await users.verify(HERE, b"alice", RIGHT)
    assert pool_threads()
    users.close()
    await until(lambda: not pool_threads(), "its threads have ended")


def pool_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("fastsocks-auth")]


def test_the_loop_may_be_gone_before_a_check_ends(world, file, caplog):
    """Told to stop in the middle of a login: nothing to be read in the log about it."""
    world.go_on.clear()

    async def stop_early():
        users = Users({}, str(file), world.clock, world.sleep)
        login = asyncio.ensure_future(users.verify(HERE, b"alice", RIGHT))
        while not world.checked:
            await asyncio.sleep(0.001)
        login.cancel()
        users.close()

    asyncio.run(stop_early())
    threads = pool_threads()
    assert threads
    world.go_on.set()
    for thread in threads:
        thread.join(30)
    assert caplog.text == ""
