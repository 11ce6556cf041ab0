# What the C library is asked, and what it says for want of descriptors, which is no answer.

from __future__ import annotations

import contextlib
import resource
import socket

import pytest

from fastsocks import names


@contextlib.contextmanager
def no_descriptors():
    """For as short as can be: pytest needs some as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_addresses_of_a_name():
    assert ("127.0.0.1", 0) in names.addresses_of("localhost")
    assert {address[0] for address in names.addresses_of("localhost", socket.AF_INET)} == {
        "127.0.0.1"
    }


@pytest.mark.parametrize(
    "ask", [lambda: names.addresses_of("::1", socket.AF_INET), lambda: names.name_of("no address")]
)
def test_there_is_none(ask):
    with pytest.raises(socket.gaierror):
        ask()


@pytest.mark.parametrize(
    "ask", [lambda: names.addresses_of("nowhere.invalid"), lambda: names.name_of("192.0.2.1")]
)
def test_out_of_descriptors_is_no_answer(ask):
    """The C library says of any name then that it is not known."""
    with pytest.raises(names.Lack, match="Too many open files"), no_descriptors():
        ask()


@pytest.mark.parametrize(
    ("asked", "ask"),
    [
        ("getaddrinfo", lambda: names.addresses_of("host.example")),
        ("getnameinfo", lambda: names.name_of("192.0.2.1")),
    ],
)
def test_out_of_memory_is_no_answer(monkeypatch, asked, ask):
    def fail(*question):
        raise socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure")

    monkeypatch.setattr(socket, asked, fail)
    with pytest.raises(names.Lack, match="Cannot allocate memory"):
        ask()
