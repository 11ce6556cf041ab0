# Guessing is made slow: who failed waits, and nobody else does. The clock is the test's.

from __future__ import annotations

import pytest

from fastsocks.backoff import ADDRESSES, LONGEST_WAIT, WINDOW, BackOff, pause


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def back_off(clock):
    return BackOff(clock)


def fail(back_off: BackOff, host: str, times: int) -> None:
    for _ in range(times):
        back_off.failed(host, b"alice")


def test_waits_grow_from_the_third_failure_to_the_longest():
    assert [pause(failures) for failures in range(9)] == [0, 0, 0, 0.5, 1, 2, 4, 5, 5]
    assert pause(10**9) == LONGEST_WAIT


@pytest.mark.parametrize(("failures", "wait"), [(0, 0), (2, 0), (3, 0.5), (4, 1), (100, 5)])
def test_who_has_failed_three_times_waits(back_off, failures, wait):
    fail(back_off, "192.0.2.1", failures)
    assert back_off.wait("192.0.2.1") == wait


def test_nobody_else_waits(back_off):
    fail(back_off, "192.0.2.1", 9)
    for other in ("192.0.2.2", "2001:db8::1", "127.0.0.1"):
        assert not back_off.has(other)
        assert back_off.wait(other) == 0


def test_time_that_has_passed_is_not_waited_again(back_off, clock):
    fail(back_off, "192.0.2.1", 5)
    clock.now += 1.5
    assert back_off.wait("192.0.2.1") == 0.5


def test_parallel_tries_take_turns(back_off, clock):
    """A hundred connections at once are no way round the wait."""
    fail(back_off, "192.0.2.1", 5)
    waits = [back_off.wait("192.0.2.1") for _ in range(100)]
    assert waits[:3] == [2, 4, None]
    assert set(waits[3:]) == {None}
    clock.now += 4  # both have been made
    assert back_off.wait("192.0.2.1") == 2


def test_success_is_a_clean_slate(back_off):
    fail(back_off, "192.0.2.1", 9)
    back_off.succeeded("192.0.2.1", b"alice")
    assert not back_off.has("192.0.2.1")
    assert back_off.wait("192.0.2.1") == 0
    fail(back_off, "192.0.2.1", 2)
    assert back_off.wait("192.0.2.1") == 0


def test_success_of_one_does_not_excuse_guesses_at_another(back_off):
    """Or whoever has an account could try out all others."""
    fail(back_off, "192.0.2.1", 3)
    back_off.succeeded("192.0.2.1", b"mallory")
    assert back_off.wait("192.0.2.1") == 0.5
    back_off.failed("192.0.2.1", b"mallory")
    back_off.succeeded("192.0.2.1", b"mallory")
    back_off.succeeded("192.0.2.1", b"alice")
    assert back_off.has("192.0.2.1")


def test_a_minute_is_a_clean_slate(back_off, clock):
    fail(back_off, "192.0.2.1", 9)
    clock.now += WINDOW + 0.1
    assert back_off.wait("192.0.2.1") == 0
    fail(back_off, "192.0.2.1", 2)
    assert back_off.wait("192.0.2.1") == 0


def test_an_ipv6_machine_has_a_whole_64(back_off):
    for number in range(3):
        back_off.failed(f"2001:db8:0:1::{number:x}", b"alice")
    assert back_off.wait("2001:db8:0:1:ffff:ffff:ffff:ffff") == 0.5
    assert back_off.wait("2001:db8:0:2::1") == 0
    fail(back_off, "fe80::1%eth0", 3)
    assert back_off.has("fe80::2%eth0")


def test_remembers_so_many_addresses_and_the_latest_of_them(back_off):
    fail(back_off, "192.0.2.1", 3)
    for number in range(ADDRESSES - 1):
        back_off.failed(f"10.0.{number >> 8}.{number & 255}", b"alice")
    assert len(back_off) == ADDRESSES
    back_off.failed("192.0.2.1", b"alice")  # so the oldest is another one now
    back_off.failed("10.9.9.9", b"alice")
    assert len(back_off) == ADDRESSES
    assert back_off.has("192.0.2.1")
    assert not back_off.has("10.0.0.0")
