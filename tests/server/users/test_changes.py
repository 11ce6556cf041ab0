# The file of users changes: what holds from when on, that a broken one changes nothing, and
# what is told of it.

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from fastsocks import auth
from fastsocks.auth import Users
from support.users import HERE, RIGHT, THERE


def change(file, text: str) -> None:
    """As passwd does, so that time, size or inode differ."""
    fresh = file.with_name("fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    os.replace(fresh, file)
    stamp = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(stamp, stamp))


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


async def test_a_file_that_cannot_be_read_is_tried_again(users, world, file, hashed, monkeypatch):
    """For want of descriptors, say. Else who has been removed would stay in."""
    assert await users.verify(HERE, b"alice", RIGHT)
    change(file, f"bob:{hashed(b'bob')}\n")
    real = os.open

    def out_of_descriptors(path, *arguments, **settings):
        if path == str(file):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", out_of_descriptors)
    world.now += 1
    assert users.check_now(HERE, b"alice", RIGHT) is True
    monkeypatch.setattr(os, "open", real)
    world.now += 1
    assert users.check_now(HERE, b"alice", RIGHT) is False


async def test_a_file_whose_rights_have_changed_is_read_again(users, world, file, monkeypatch):
    reads = []
    real = auth.users_file.read
    monkeypatch.setattr(auth.users_file, "read", lambda path: reads.append(path) or real(path))
    file.chmod(0o640)
    world.now += 1
    users.check_now(HERE, b"alice", RIGHT)
    assert reads == [str(file)]


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
