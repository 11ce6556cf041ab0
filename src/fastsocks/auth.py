"""Who is the client? Users and passwords as configured.

    choose_method   which of the offered methods the client has to use
    Users           judges what it claims then: passwords given directly and those of
                    a users file, which are hashed, so that a check takes long

SOCKS authenticates every connection, a browser's dozens a page. So a password that
was right is remembered for a while, as a keyed hash, and judging it again costs a
session a few microseconds and no turn of the loop. It must not know sockets or
messages; it is asked with what the client claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastsocks import users_file
from fastsocks.backoff import LONGEST_WAIT, BackOff
from fastsocks.clients import network_of
from fastsocks.crew import Crew, Full
from fastsocks.engine import Address
from fastsocks.errors import ConfigError, NotChecked
from fastsocks.passwords import check, cost
from fastsocks.places import Places
from fastsocks.proto.wire import NO_AUTH, USER_PASSWORD
from fastsocks.quiet import QuietLog

# Checks at once and in all, those that wait for a thread included. Each may take 64 MiB and
# half a second; waiting longer than a handshake may take is waiting for nothing.
THREADS = 3
CHECKS_MAX = 64
THREAD_IDLE = 10.0  # seconds
# So many of them for one client's address or network: of guesses that come all at once, no
# more are looked at before the first have failed, and the rest have to wait for it.
CHECKS_PER_ADDRESS = 8
WAITING_PER_ADDRESS = 64

# Seconds for which a slow hash is not checked again, for those who open many connections.
REMEMBERED = 300.0
LOOK_EVERY = 1.0  # seconds between two looks at the users file

log = logging.getLogger("fastsocks.auth")


def choose_method(offered: bytes, login_needed: bool, strict: bool) -> int | None:
    """The method of RFC 1928 section 3 a client has to use, None for no acceptable one.

    Where everyone must log in only user/password will do. Where nobody must, "none"
    wins, as clients that offer both often have no password to send (Java's sends the
    name of the operating system's user and an empty one); a client that offers nothing
    but user/password may say what it likes, unless ``strict``.
    """
    if not login_needed and NO_AUTH in offered:
        return NO_AUTH
    if USER_PASSWORD in offered and (login_needed or not strict):
        return USER_PASSWORD
    return None


class Users:
    """The users of a server. Empty: nobody has to prove anything. With a users file
    somebody has to, even when the file has nobody in it.

    ``passwords`` are given directly, in clear; ``path`` is a users file. The file is
    looked at when somebody logs in, once a second at most, and read again when it has
    changed (6 ms for a thousand users, in which no handshake goes on). Raises ConfigError
    when it cannot be used.

    Belongs to one event loop and its thread.
    """

    def __init__(
        self,
        passwords: Mapping[str, str],
        path: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._passwords = {user.encode(): secret.encode() for user, secret in passwords.items()}
        self._clock = clock
        self._sleep = sleep
        self._back_off = BackOff(clock)
        self._path = path
        self._hashes: dict[bytes, str] = {}
        self._decoys: list[str] = []  # the same hashes, by what they cost
        self._version: users_file.Version | None = None  # None: it could not be read
        self._complaint = ""  # the last, which is told once
        self._next_look = clock() + LOOK_EVERY
        # user -> (keyed hash of the right password, until when it is believed)
        self._proven: dict[bytes, tuple[bytes, float]] = {}
        self._key = os.urandom(32)
        # keyed hash of a claim -> the answer that those who claim it wait for
        self._checks: dict[bytes, asyncio.Future[bool | None]] = {}
        self._quiet = QuietLog(log)
        self._places = Places(CHECKS_PER_ADDRESS, WAITING_PER_ADDRESS)
        self._crew: Crew | None = None
        if path is not None:
            self._take(users_file.read(path))

    def __bool__(self) -> bool:
        return bool(self._passwords) or self._path is not None

    def check_now(self, client: Address, user: bytes, password: bytes) -> bool:
        """Whether this user is known to be right, at once; False when that takes
        ``verify``, be it a slow hash or an address that has to wait."""
        return not self._back_off.has(client[0]) and self._knows(user, password)

    async def verify(self, client: Address, user: bytes, password: bytes) -> bool:
        """Waits if the address has failed too often lately, then checks.

        Raises NotChecked, and lets it count for nothing, when too many logins are
        being checked or waiting, and when the check fails for want of memory and the like.
        """
        host = client[0]
        network = network_of(host)
        if self._places.is_full(network):
            raise NotChecked("too many logins are waiting")
        async with self._places.one(network):
            wait = self._back_off.wait(host)
            if wait is None:
                await self._sleep(LONGEST_WAIT)
                if self._back_off.has(host):  # or a login of the right user has ended it
                    raise NotChecked("too many failed logins from this address")
            if wait:
                await self._sleep(wait)
            if self._knows(user, password):
                granted = True
            elif stored := self._hashes.get(user, self._decoy(user)):
                answer = await asyncio.shield(self._check(host, user, stored, password))
                if answer is None:
                    raise NotChecked("the password could not be checked")
                granted = answer
            else:
                granted = False
                self._back_off.failed(host, user)
            if granted:
                self._back_off.succeeded(host, user)
            return granted

    def reload(self) -> bool:
        """Reads the users file again. A wrong one gets one line in the log, and the
        users stay as they were; False then."""
        self._complaint = ""
        return self._path is None or self._read_again(self._path)

    def close(self) -> None:
        """Checks that nobody has begun are given up."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    # -- the file ----------------------------------------------------------

    def _take(self, fresh: users_file.Snapshot) -> None:
        """Raises ConfigError, and changes nothing, if it does not fit the rest."""
        path = self._path
        for name in self._passwords.keys() & fresh.hashes.keys():
            raise ConfigError(
                f"users {path}: user {name.decode()!r} has been given a password directly;"
                " must be in one place"
            )
        if fresh.open_to_others:
            log.warning("%s", users_file.too_open("users", path, fresh.open_to_others))
        if not fresh.hashes:
            log.warning("users %s: has no users; nobody in it can log in", path)
        self._hashes = fresh.hashes
        self._version = fresh.version
        self._proven.clear()
        self._decoys = sorted(fresh.hashes.values(), key=cost)

    def _look(self, path: str, now: float) -> None:
        """Reads the file again if it is another one than last time, or could not be read."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        if self._version is None or _version(path) != self._version:
            self._read_again(path)

    def _read_again(self, path: str) -> bool:
        version = _version(path)
        try:
            fresh = users_file.read(path)
            self._take(fresh)
        except ConfigError as error:
            # A wrong one is read once; of one that cannot be read nothing is known, so that
            # somebody may have been removed.
            self._version = None if isinstance(error, users_file.Unreadable) else version
            complaint, self._complaint = self._complaint, str(error)
            if complaint != self._complaint:
                log.error("%s; the users as they were stay in force", error)
            return False
        self._complaint = ""
        log.info("users %s: read again, with %d in it", path, len(fresh.hashes))
        return True

    def _decoy(self, user: bytes) -> str | None:
        """Whose hash is checked for a user that the file lacks: always one of the same cost for
        the same name, and of each cost for as many as among the file's own users, so that how
        long it takes says nothing. A user more or less changes that for few, as the hashes are
        in order."""
        if not self._decoys:
            return None
        digest = hashlib.blake2b(user, key=self._key, digest_size=8, person=b"decoy").digest()
        return self._decoys[int.from_bytes(digest) * len(self._decoys) >> 64]

    # -- judging -----------------------------------------------------------

    def _knows(self, user: bytes, password: bytes) -> bool:
        """Whether it is right, as far as can be told without a slow hash."""
        if self._path is not None:
            now = self._clock()
            self._look(self._path, now)
            if proof := self._proven.get(user):
                token, until = proof
                stored = self._hashes[user]
                return now < until and hmac.compare_digest(
                    token, self._token(user, stored, password)
                )
        # In constant time for known and unknown users alike.
        known = self._passwords.get(user)
        same = hmac.compare_digest(known if known is not None else b"\0", password)
        return same and known is not None

    def _token(self, user: bytes, stored: str, password: bytes) -> bytes:
        """Means nothing to anyone without this process's key. The length of the user's
        name and a hash that has no colon leave no two ways to read it."""
        claim = b"%d:%b%b:%b" % (len(user), user, stored.encode(), password)
        return hashlib.blake2b(claim, key=self._key, digest_size=16).digest()

    def _check(
        self, host: str, user: bytes, stored: str, password: bytes
    ) -> asyncio.Future[bool | None]:
        """A slow hash, off the loop; None where that did not work. Those who claim the same
        meanwhile, as the parallel connections of a browser do, share the answer; a failed
        login counts once."""
        token = self._token(user, stored, password)
        answer = self._checks.get(token)
        if answer is None:
            if self._crew is None:
                self._crew = Crew("fastsocks-auth", CHECKS_MAX, THREADS, THREAD_IDLE)
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            tell = functools.partial(self._on_checked, answer, token, host, user, stored)
            try:
                self._crew.put(network_of(host), Check(loop, stored, password, tell).run)
            except Full as error:
                raise NotChecked(f"the password cannot be checked: {error}") from None
            self._checks[token] = answer
        return answer

    def _on_checked(
        self,
        answer: asyncio.Future[bool | None],
        token: bytes,
        host: str,
        user: bytes,
        stored: str,
        right: bool,
        failure: str,
    ) -> None:
        """Whether or not somebody still waits for the answer."""
        del self._checks[token]
        if failure:
            # No memory, most likely. The text of a stranger's exception is not told.
            self._quiet.warning("check", "a password could not be checked: %s", failure)
            answer.set_result(None)
            return
        # The decoy's password is nobody's, and a file that has changed meanwhile may have
        # another one for the user or none.
        right = right and self._hashes.get(user) == stored
        if right:
            self._proven[user] = (token, self._clock() + REMEMBERED)
        else:
            self._back_off.failed(host, user)
        answer.set_result(right)


@dataclass(frozen=True, slots=True)
class Check:
    """One password on its way through a thread."""

    loop: asyncio.AbstractEventLoop
    stored: str
    password: bytes
    tell: Callable[[bool, str], None]

    def run(self) -> None:
        right, failure = False, ""
        try:
            right = check(self.stored, self.password)
        except BaseException as error:  # as a panic in bcrypt's Rust is
            failure = type(error).__name__
        # RuntimeError: the loop is closed, so nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.tell, right, failure)


def _version(path: str) -> users_file.Version | None:
    """None where there is nothing to look at; read() will say what is wrong."""
    try:
        return users_file.version_of(os.stat(path))
    except OSError:
        return None
