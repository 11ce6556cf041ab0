# The file of users: what is read from it, what is refused with which line named, and
# that rewriting one line can lose neither another one nor the file.

from __future__ import annotations

import os
import stat
import struct
import threading

import pytest

from fastsocks import users_file
from fastsocks.errors import ConfigError


@pytest.fixture
def one(hashed):
    return hashed(b"one")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "users"


def lines(file, *rows: str, end: str = "\n") -> str:
    file.write_bytes("".join(row + end for row in rows).encode())
    return str(file)


# -- reading -----------------------------------------------------------------


def test_reads_users_in_order_and_leaves_people_their_lines(file, one, hashed):
    two = hashed(b"two")
    path = lines(file, "# ours", "", f"alice:{one}", "  ", "\t# theirs", f"bob smith:{two} ")
    assert users_file.read(path).hashes == {b"alice": one, b"bob smith": two}


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
def test_reads_what_other_systems_write(file, one, head, end, last):
    file.write_bytes(head + f"alice:{one}".encode() + end + f"bob:{one}".encode() + end * last)
    assert list(users_file.read(str(file)).hashes) == [b"alice", b"bob"]


@pytest.mark.parametrize(
    "name", ["a", "p\u00e4r", "a b", "a$b", "a@b.example", "n" * 255, "\u00e4" * 127]
)
def test_names_that_are_fine(file, one, name):
    assert list(users_file.read(lines(file, f"{name}:{one}")).hashes) == [name.encode()]


def test_an_empty_file_has_nobody(file):
    file.touch()
    assert users_file.read(str(file)).hashes == {}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("hunter2hunter2", "NAME:HASH"),
        ("alice", "NAME:HASH"),
        ("alice:", "NAME:HASH"),
        (":HASH", "user name"),
        ("alice:HASH:comment", "NAME:HASH"),
        ("alice :HASH", "space"),
        ("al\x1bice:HASH", "control"),
        ("al\rice:HASH", "control"),
        ("al\x00ice:HASH", "control"),
        ("al\u0085ice:HASH", "control"),
        ("n" * 256 + ":HASH", "255"),
        ("\u00e4" * 128 + ":HASH", "255"),
        ("bob:HASH", "line 2"),
        ("alice:hunter2hunter2", "must be $scrypt$"),
        ("alice:{SHA}hunter2hunter2=", "must be $scrypt$"),
        ("alice:$apr1$hunter2hunter2$x", "must be $scrypt$"),
        ("alice:HASH HASH", "mistyped"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_wrong_line_is_named_and_not_told(file, one, wrong, told):
    wrong = wrong.replace("HASH", one)
    path = lines(file, "# a comment", f"bob:{one}", wrong, f"carol:{one}")
    with pytest.raises(ConfigError) as refused:
        users_file.read(path)
    message = str(refused.value)
    assert message.startswith(f"users {path}, line 3: ")
    assert told in message
    assert "hunter2" not in message
    assert one.rpartition("$")[2] not in message
    assert "\n" not in message


def test_octets_that_are_no_text(file, one):
    file.write_bytes(f"bob:{one}\n".encode() + b"\xff\xfe:x\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        users_file.read(str(file))


def test_utf_16_is_told_and_not_read_as_nobody(file, one):
    file.write_text(f"bob:{one}\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="line 1"):
        users_file.read(str(file))


def test_no_file_says_how_to_make_one(file):
    with pytest.raises(ConfigError, match="fastsocks passwd"):
        users_file.read(str(file))


def test_what_is_no_file(tmp_path):
    """Opening a FIFO would wait for ever, and /dev/zero never ends."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"regular file|directory"):
            users_file.read(path)


def test_a_file_beyond_all_measure(file):
    with file.open("wb") as huge:
        huge.truncate(users_file.FILE_OCTETS + 1)
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        users_file.read(str(file))


@pytest.mark.parametrize(
    ("mode", "open_to_others"),
    [(0o600, ""), (0o640, ""), (0o644, "r"), (0o602, "w"), (0o666, "rw")],
)
def test_tells_when_anyone_may_read_or_change_it(file, one, mode, open_to_others):
    path = lines(file, f"bob:{one}")
    file.chmod(mode)
    assert users_file.read(path).open_to_others == open_to_others


def test_no_descriptor_stays_open(file, tmp_path, descriptors_balance):
    lines(file, "wrong")
    for path in (str(file), str(tmp_path), "/dev/null"):
        with pytest.raises(ConfigError):
            users_file.read(path)


# -- rewriting ---------------------------------------------------------------


def test_a_new_file_is_for_its_owner_only(file, one):
    before = os.umask(0)
    try:
        assert users_file.put(str(file), "alice", one)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == f"alice:{one}\n"


def test_changes_one_line_and_keeps_the_rest(file, one, hashed):
    new = hashed(b"new")
    path = lines(file, "# ours", f"alice:{one}", "", f"bob:{one}", "# end")
    assert not users_file.put(path, "alice", new)
    assert file.read_text() == f"# ours\nalice:{new}\n\nbob:{one}\n# end\n"
    assert users_file.put(path, "carol", new)
    assert file.read_text() == f"# ours\nalice:{new}\n\nbob:{one}\n# end\ncarol:{new}\n"
    assert users_file.remove(path, "bob")
    assert file.read_text() == f"# ours\nalice:{new}\n\n# end\ncarol:{new}\n"
    assert not users_file.remove(path, "bob")


def test_keeps_what_another_system_wrote(file, one, hashed):
    new = hashed(b"new")
    file.write_bytes(b"\xef\xbb\xbf" + f"alice:{one}\r\nbob:{one}".encode())
    users_file.put(str(file), "alice", new)
    users_file.put(str(file), "carol", new)
    expected = f"alice:{new}\r\nbob:{one}\ncarol:{new}\n"
    assert file.read_bytes() == b"\xef\xbb\xbf" + expected.encode()


def test_a_name_is_no_pattern(file, one):
    path = lines(file, f"alice:{one}")
    assert users_file.put(path, "al.ce", one)
    assert users_file.put(path, "alic", one)
    assert list(users_file.read(path).hashes) == [b"alice", b"al.ce", b"alic"]


def test_a_hash_the_server_would_refuse_can_be_replaced(file, one):
    """The way from an htpasswd file of MD5 to one that is fit."""
    path = lines(file, "alice:$apr1$abc$def", "bob:{SHA}abc=")
    users_file.put(path, "alice", one)
    assert users_file.remove(path, "bob")
    assert users_file.read(path).hashes == {b"alice": one}


@pytest.mark.parametrize(
    "other", ["root:x:0:0:root:/root:/bin/sh", "127.0.0.1 localhost", "::1 me"]
)
def test_a_file_that_is_something_else_stays_as_it_is(file, one, other):
    path = lines(file, other)
    for act in (
        lambda: users_file.put(path, "alice", one),
        lambda: users_file.remove(path, "alice"),
    ):
        with pytest.raises(ConfigError, match="line 1"):
            act()
    assert file.read_text() == other + "\n"


@pytest.mark.parametrize(
    "name", ["", "a:b", "a\nb", "a\r", " a", "a ", "#a", "n" * 256, "\udcff", "\ufeffa"]
)
def test_a_name_that_could_not_be_read_back_is_not_written(file, one, name):
    with pytest.raises(ValueError, match="user name"):
        users_file.put(str(file), name, one)
    assert not file.exists()


def test_keeps_mode_and_owner(file, one, hashed):
    path = lines(file, f"alice:{one}")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1, 1)
    before = file.stat()
    users_file.put(path, "alice", hashed(b"new"))
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino


def test_an_owner_that_cannot_be_kept_stops_it(file, one, monkeypatch):
    path = lines(file, f"alice:{one}")
    before = file.read_bytes()

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "fstat", fstat_of_a_stranger(os.fstat))
    with pytest.raises(PermissionError, match="owner"):
        users_file.put(path, "bob", one)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["users"]


def fstat_of_a_stranger(real):
    """The first file asked about, the old one, is somebody else's."""
    asked = []

    def fstat(handle):
        status = real(handle)
        asked.append(handle)
        if len(asked) > 1:
            return status
        fields = list(status)
        fields[4] += 1
        return os.stat_result(fields)

    return fstat


ACCESS_LIST = "system.posix_acl_access"
DEFAULT_LIST = "system.posix_acl_default"  # what files in a directory are made with
# (tag, what it may, who): the owner, user 4242, the group, the most for both, others
ENTRIES = [(1, 6, -1), (2, 4, 4242), (4, 0, -1), (16, 4, -1), (32, 0, -1)]


def give_list(place, kind: str) -> None:
    octets = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in ENTRIES)
    os.setxattr(place, kind, octets)


@pytest.mark.linux
def test_keeps_who_else_may_read_it(file, one, hashed):
    """Without its list the group would have what the list's mask has."""
    path = lines(file, f"alice:{one}")
    give_list(file, ACCESS_LIST)
    before = file.stat().st_mode, os.getxattr(file, ACCESS_LIST)
    users_file.put(path, "alice", hashed(b"new"))
    assert (file.stat().st_mode, os.getxattr(file, ACCESS_LIST)) == before
    assert stat.S_IMODE(before[0]) == 0o640


@pytest.mark.linux
def test_takes_no_reader_over_from_the_directory(file, one):
    path = lines(file, f"alice:{one}")
    file.chmod(0o640)
    give_list(file.parent, DEFAULT_LIST)
    users_file.put(path, "bob", one)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert ACCESS_LIST not in os.listxattr(file)


@pytest.mark.linux
def test_readers_that_cannot_be_kept_stop_it(file, one, monkeypatch):
    path = lines(file, f"alice:{one}")
    give_list(file, ACCESS_LIST)
    before = file.read_bytes()

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(OSError, match="ACL"):
        users_file.put(path, "bob", one)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["users"]


def test_a_directory_that_cannot_be_written_out_is_no_failure(file, one, monkeypatch):
    """The new file is in its place by then."""
    path = lines(file, f"alice:{one}")
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert users_file.put(path, "bob", one)
    assert list(users_file.read(path).hashes) == [b"alice", b"bob"]


def test_a_symlink_stays_one(file, one, tmp_path):
    (tmp_path / "far").mkdir()
    real = tmp_path / "far" / "real"
    real.write_text(f"alice:{one}\n")
    file.symlink_to(real)
    users_file.put(str(file), "bob", one)
    assert file.is_symlink()
    assert list(users_file.read(str(real)).hashes) == [b"alice", b"bob"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_half_way_leaves_the_old_file(file, one, monkeypatch, step):
    path = lines(file, f"alice:{one}")
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        users_file.put(path, "bob", one)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["users"]


def test_who_write_at_once_do_not_undo_each_other(file, one):
    names = [f"user{number}" for number in range(16)]
    threads = [
        threading.Thread(target=users_file.put, args=(str(file), name, one)) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(users_file.read(str(file)).hashes) == sorted(name.encode() for name in names)
