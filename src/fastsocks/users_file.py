"""The file of users: NAME:HASH, one a line, as htpasswd writes it.

Lines that are empty or begin with ``#`` are for people. Reading judges every line;
rewriting changes one line and leaves the others octet for octet as they are. It must
not know who logs in, nor check a password. No message holds a hash, or a line that
may be a password put in the wrong place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from fastsocks import passwords
from fastsocks.errors import ConfigError

BOM = b"\xef\xbb\xbf"
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
NAME_OCTETS = 255  # RFC 1929
# A hundred thousand users; what is larger is another file.
FILE_OCTETS = 16 << 20
# Linux's. With it the group's bits of the mode are its mask, without it they are the group's.
ACCESS_LIST = "system.posix_acl_access"

Version = tuple[int, int, int, int]
"""What changes when a file, or who may read it, does: (mtime and ctime in ns, size, inode)."""


class Unreadable(ConfigError):
    """Nothing is known of what is in it, now."""


class Snapshot(NamedTuple):
    """The file as it was read."""

    hashes: dict[bytes, str]
    version: Version
    open_to_others: str
    """what anyone on this machine may do with it: ``r``, ``w``, ``rw`` or nothing"""


def read(path: str) -> Snapshot:
    """Raises ConfigError that says which line is wrong, and what would be right, and
    Unreadable."""
    try:
        data, status = _content(path)
    except FileNotFoundError:
        raise Unreadable(
            f"users {path}: no such file; make one with: fastsocks passwd {path} USER"
        ) from None
    except OSError as error:
        raise Unreadable(f"users {path}: {error.strerror or error}") from None
    hashes: dict[bytes, str] = {}
    for number, name, stored in _entries(path, data):
        try:
            passwords.validate(stored)
        except ValueError as error:
            raise _wrong(path, number, str(error)) from None
        hashes[name.encode()] = stored
    return Snapshot(hashes, version_of(status), open_to_others(status))


def open_to_others(status: os.stat_result) -> str:
    return "r" * bool(status.st_mode & stat.S_IROTH) + "w" * bool(status.st_mode & stat.S_IWOTH)


def too_open(what: str, path: str | None, how: str) -> str:
    verb = {"r": "read", "w": "change", "rw": "read and change"}[how]
    return f"{what} {path}: anyone on this machine may {verb} it; chmod o-{how} {path}"


def version_of(status: os.stat_result) -> Version:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def check_name(name: str) -> None:
    """Raises ValueError that says what a user name may be."""
    try:
        octets = len(name.encode())
    except UnicodeEncodeError:
        octets = 0
    if not 1 <= octets <= NAME_OCTETS:
        raise ValueError("a user name must have 1 to 255 octets of UTF-8 (RFC 1929)")
    if ":" in name or CONTROL.search(name):
        raise ValueError("a user name must have no colon and no control character")
    if name != name.strip() or name.startswith(("#", "\ufeff")):
        raise ValueError("a user name must not begin or end with a space, nor begin with #")


def check_place(path: str) -> None:
    """Raises what ``put`` would where the file cannot have a user: known before anyone
    is asked for a password."""
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    os.stat(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code))
    with contextlib.suppress(FileNotFoundError):
        for _ in _entries(path, _content(path)[0]):
            pass


def put(path: str, name: str, stored: str) -> bool:
    """Adds the user, or gives them this hash; True if they are new. The file is made if
    there is none. Raises ValueError or ConfigError for what must not be written, and
    OSError when it cannot be: then the file is as it was."""
    check_name(name)
    passwords.validate(stored)
    return _rewrite(path, name, f"{name}:{stored}".encode()) is None


def remove(path: str, name: str) -> bool:
    """False if there is no such user. Raises as ``put`` does."""
    return _rewrite(path, name, None) is not None


# -- reading ---------------------------------------------------------------


def _content(path: str) -> tuple[bytes, os.stat_result]:
    """Raises OSError for all that is not a file of a sensible size."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        # open() closes no descriptor that it refuses, as that of a directory.
        with open(handle, "rb", closefd=False) as file:
            data = file.read(FILE_OCTETS + 1)
    finally:
        os.close(handle)
    if len(data) > FILE_OCTETS:
        raise OSError(errno.EFBIG, f"larger than {FILE_OCTETS >> 20} MiB")
    return data, status


def _entries(path: str, data: bytes) -> Iterator[tuple[int, str, str]]:
    """(line number, name, hash) of every user. Raises ConfigError for the first line
    that is none, whatever its hash is worth."""
    seen: dict[str, int] = {}
    for number, raw in enumerate(data.removeprefix(BOM).split(b"\n"), 1):
        try:
            line = raw.decode().strip(" \t\r")
        except UnicodeDecodeError:
            raise _wrong(path, number, "not UTF-8 text") from None
        if not line or line.startswith("#"):
            continue
        name, colon, stored = line.partition(":")
        if not colon or not stored or ":" in stored:
            raise _wrong(path, number, "must be NAME:HASH, and nothing else")
        try:
            check_name(name)
        except ValueError as error:
            raise _wrong(path, number, str(error)) from None
        if name in seen:
            raise _wrong(
                path, number, f"user {name!r} is in line {seen[name]} already; must be there once"
            )
        seen[name] = number
        yield number, name, stored


def _wrong(path: str, number: int, what: str) -> ConfigError:
    return ConfigError(f"users {path}, line {number}: {what}")


# -- rewriting -------------------------------------------------------------


def _rewrite(path: str, name: str, line: bytes | None) -> bytes | None:
    """Puts ``line`` (None: nothing) in the place of the user's line, which it returns;
    None if there was none, in which case the new one comes last."""
    path = os.path.realpath(path)  # a symlink stays one
    with _alone(os.path.dirname(path)):
        try:
            data, status = _content(path)
        except FileNotFoundError:
            if line is None:
                raise
            data, status = b"", None
        place = {found: number for number, found, _ in _entries(path, data)}.get(name)
        head = BOM if data.startswith(BOM) else b""
        lines = data.removeprefix(BOM).split(b"\n")
        before = None
        if place is not None:
            before = lines.pop(place - 1)
            if line is not None:
                lines.insert(place - 1, line + b"\r" * before.endswith(b"\r"))
        elif line is not None:
            if lines[-1]:  # the last line has no end
                lines.append(b"")
            lines.insert(-1, line)
        if before is not None or line is not None:
            _replace(path, head + b"\n".join(lines), status)
        return before


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Two who rewrite at once would undo each other. The file itself cannot be locked:
    another one takes its place."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        # The change is made; that it would not outlive a loss of power is no failure of it.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: str, data: bytes, status: os.stat_result | None) -> None:
    """All of the new file or all of the old one, whenever the machine stops."""
    directory, base = os.path.split(path)
    handle, fresh = tempfile.mkstemp(dir=directory, prefix=f".{base}.")  # mode 0600
    try:
        with open(handle, "wb") as file:
            file.write(data)
            if status is not None:
                # The owner first: a new owner takes mode bits away. The mode last: with a list
                # less, its group's bits would be the group's own.
                made = os.fstat(handle)
                if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
                    _give(handle, status)
                _list(handle, path)
                os.fchmod(handle, stat.S_IMODE(status.st_mode))
            file.flush()
            os.fsync(handle)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def _give(handle: int, status: os.stat_result) -> None:
    try:
        os.fchown(handle, status.st_uid, status.st_gid)
    except PermissionError as error:
        # A file that its server can no longer read would be worse than no change.
        owner = f"{status.st_uid}:{status.st_gid}"
        raise PermissionError(error.errno, f"its owner {owner} could not be kept") from None


def _list(handle: int, path: str) -> None:
    """Gives it the access list of the file at ``path``, or none where that has none: a new
    file may have got one from its directory."""
    if not hasattr(os, "getxattr"):
        return
    wanted, made = _access_list(path), _access_list(handle)
    try:
        if wanted is not None:
            os.setxattr(handle, ACCESS_LIST, wanted)
        elif made is not None:
            os.removexattr(handle, ACCESS_LIST)
    except OSError as error:
        raise OSError(error.errno, "its access list (ACL) could not be kept") from None


def _access_list(file: str | int) -> bytes | None:
    try:
        return os.getxattr(file, ACCESS_LIST)
    except OSError:  # it has none, or its file system has no lists
        return None
