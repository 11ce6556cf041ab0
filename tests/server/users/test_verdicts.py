# Who is let in: by which method, with which password, and when that costs no hash. What a
# wrong answer shows of the users is nothing.

from __future__ import annotations

import pytest

from fastsocks import passwords
from fastsocks.auth import REMEMBERED, Users, choose_method
from fastsocks.errors import ConfigError
from support.users import HERE, RIGHT, THERE, WRONG

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


async def test_no_cost_tells_who_exists(world, tmp_path, hashed):
    """Where a file has several, those whom it lacks take each as often as its users do, and
    each of them always the same: also when the file gets a user more, but for a few."""
    path = tmp_path / "users"
    rare, usual = hashed(b"x", ln=5), [hashed(b"x") for _ in range(4)]
    path.write_text("\n".join(f"u{n}:{one}" for n, one in enumerate([*usual[:3], rare])))
    users = Users({}, str(path), world.clock)
    guesses = [(f"192.0.2.{number}", 9) for number in range(200)]

    async def dear():
        """Those who take what is rare."""
        del world.checked[:]
        for host in guesses:
            assert not await users.verify(host, host[0].encode(), WRONG)
        costs = [passwords.cost(stored) for stored, _ in world.checked]
        return {one for one, cost in enumerate(costs) if cost == passwords.cost(rare)}

    before = await dear()
    assert 20 < len(before) < 90  # a quarter; in one run of ten million it is further off
    assert await dear() == before
    path.write_text("\n".join(f"u{n}:{one}" for n, one in enumerate([*usual, rare])))
    assert users.reload()
    assert len(await dear() ^ before) < 40  # a twentieth
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
