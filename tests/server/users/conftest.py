# What the tests of users without a server share: a file with two of them, asked in a world
# whose time and hashes are the test's.

from __future__ import annotations

import pytest

from fastsocks import auth
from fastsocks.auth import Users
from support.users import RIGHT, World


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
