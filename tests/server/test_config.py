# Settings: what is accepted, what it means, and the defaults that depend on the machine.

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from types import MappingProxyType

import pytest

from fastsocks.capacity import default_max_pipes, default_max_sessions, largest_pipe
from fastsocks.config import Config, parse_listener
from fastsocks.errors import ConfigError
from fastsocks.fields import KINDS
from fastsocks.keywords import Keywords


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("127.0.0.1:1080", ("127.0.0.1", 1080)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("0.0.0.0:1080", ("0.0.0.0", 1080)),
        ("localhost:1080", ("127.0.0.1", 1080)),
        ("[::1]:1080", ("::1", 1080)),
        ("[::]:0", ("::", 0)),
        ("[fe80::1%eth0]:1080", ("fe80::1%eth0", 1080)),
    ],
)
def test_listener(text, listener):
    assert parse_listener(text) == listener


def test_defaults_are_safe():
    config = Config()
    assert config.listeners == [("127.0.0.1", 1080)]
    assert config.users == {}
    assert not config.open
    settings = config.settings()
    assert settings.handshake_timeout == 10
    assert settings.idle_timeout == 300
    assert settings.max_sessions > 0
    assert settings.max_pipes > 0
    assert settings.relay == "auto"


def test_settings_are_passed_on():
    config = Config(
        relay="splice",
        relay_threads=3,
        io_uring=False,
        pipe_size=1 << 18,
        max_pipes=0,
        max_sessions=7,
        handshake_timeout=1,
        idle_timeout=2,
        half_closed_timeout=3,
    )
    settings = config.settings()
    assert (settings.relay, settings.relay_threads) == ("splice", 3)
    assert not settings.io_uring
    assert (settings.pipe_size, settings.max_pipes) == (1 << 18, 0)
    assert settings.max_sessions == 7
    assert (settings.handshake_timeout, settings.idle_timeout) == (1, 2)
    assert settings.half_closed_timeout == 3


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().open = True


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"listen": []}, "listen"),
        ({"listen": ["127.0.0.1:1080", "nowhere"]}, "listen nowhere"),
        ({"engine": "warp"}, "engine warp"),
        ({"relay": "warp"}, "relay warp"),
        ({"relay_threads": -1}, "relay_threads -1"),
        ({"max_pipes": -1}, "max_pipes -1"),
        ({"max_sessions": 0}, "max_sessions 0"),
        ({"pipe_size": 65535}, "pipe_size 65535"),
        ({"source": "nowhere"}, "source nowhere"),
        ({"source": "::1", "prefer": "ipv4-only"}, "source ::1: .*prefer ipv4-only"),
        ({"users": {"": "x"}}, "user"),
        ({"users": {"me": ""}}, "password"),
        ({"users": {"me": "p" * 256}}, "password"),
        ({"users": {"u" * 256: "p"}}, "user"),
        ({"users": {"me": "\udcff"}}, "password"),
        ({"listen": ["0.0.0.0:1080"]}, "open"),
        ({"users_file": ""}, "users_file"),
        ({"users_file": "a\0b"}, "users_file"),
        ({"bind_anyone": True}, "bind_anyone: .* without allow_bind=True"),
        ({"udp": False, "udp_ports": (7, 9)}, "udp_ports: .* with udp=False"),
        ({"udp": False, "udp_address": "192.0.2.1"}, "udp_address: .* with udp=False"),
        ({"udp": False, "udp_full_cone": True}, "udp_full_cone: .* with udp=False"),
        ({"authenticator": print, "users": {"me": "pw"}}, "authenticator"),
        ({"authenticator": print, "users_file": "users"}, "authenticator"),
        ({"handshake_timeout": float("nan")}, "handshake_timeout nan"),
        ({"idle_timeout": float("inf")}, "idle_timeout inf"),
        ({"grace": -0.1}, "grace -0.1"),
        *[
            ({"udp_address": address}, f"udp_address {address}: must be the address of one host")
            for address in ("0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "239.1.2.3", "ff02::1")
        ],
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_setting_is_named(settings, named):
    with pytest.raises(ConfigError, match=named) as caught:
        Config(**settings)
    assert "ppp" not in str(caught.value)


class Marker:
    """Of no type that a setting has."""


WRONG_TYPES = {
    # A text is a sequence, of letters: "." would be the range of everyone.
    "a list": ("127.0.0.1:0", ".", "all", b"", [1080], [None], [("10.", "me")], {"10.": "me"}, 5),
    "an address, or a list": (5, [5], {"127.0.0.1": "127.0.0.1"}),
    "a mapping": (["me"], "me", [("me", "pppp")], {"me": None}, {5: "pppp"}, {"me": b"pppp"}, None),
    "the path": (5, b"users", ["users"], {"me": "pppp"}),
    "an async function": ("me", ("me", "pppp"), {"me": "pppp"}),
    "two ports": ((1,), (1, 2, 3), 1, "12", b"12", ("1", "2"), (1.0, 2.0), (True, 7)),
    "True or False": ("no", "", 0, 1, None),
    "a text": (5, ["native"], b"auto"),
    "a whole number": ("5", "auto", 1.5, 70000.0, True, [1]),
    "a number of seconds": ("5", True, [1], 1j),
}


def test_every_setting_has_a_type():
    assert set(KINDS) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_setting_of_another_type_is_named(name):
    words = KINDS[name].words
    values = next(wrong for start, wrong in WRONG_TYPES.items() if words.startswith(start))
    optional = getattr(Config(), name) is None
    for value in (*values, Marker(), *([] if optional else [None])):
        with pytest.raises(ConfigError) as caught:
            Config(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{name}: must be {words}"), message
        assert "pppp" not in message
        assert "\n" not in message
    assert ("None" in words) is optional


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"listen": "127.0.0.1:0"},
            "listen: must be a list of HOST:PORT, not the text '127.0.0.1:0'",
        ),
        ({"listen": [1080]}, "listen: must be a list of HOST:PORT, not [1080]"),
        ({"relay_threads": 1.5}, "relay_threads: must be a whole number, not 1.5"),
        ({"open": "no"}, "open: must be True or False, not the text 'no'"),
        (
            {"grace": Marker()},
            "grace: must be a number of seconds, not an object of type Marker",
        ),
        (
            {"users": {"me": None}},
            "users: must be a mapping of names to passwords, all of them texts",
        ),
    ],
)
def test_setting_of_another_type_is_told(settings, told):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "127.0.0.1"},
        {"source": ("127.0.0.1", "::1")},
        {"users_file": Path("users")},
        {"users": MappingProxyType({"me": "pw"})},
        {"udp_ports": [1, 2]},
        {"grace": 1, "idle_timeout": 0.5},
        {"ident": ["10."], "allow": ("all",)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_types_that_are_as_good(settings):
    config = Config(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


@pytest.mark.parametrize("listen", [["127.255.255.254:1"], ["[::1]:1"], ["localhost:1"]])
def test_loopback_needs_no_user(listen):
    assert not Config(listen=listen).open


@pytest.mark.parametrize(
    "ident",
    [["."], [".=alice"], ["0.0.0.0/1;128.0.0.0/1=alice"], ["10.", "0.0.0.0/1=me", "128.0.0.0/1"]],
    ids=str,
)
def test_ident_ranges_that_are_everyone_close_nothing(ident):
    """Nor do names: whoever comes answers for his own identd."""
    has_names = any("=" in rule for rule in ident)
    with pytest.raises(ConfigError, match=r"narrower ident ranges, .* open=True") as caught:
        Config(listen=["0.0.0.0:1080"], ident=ident)
    assert ("gives any name" in str(caught.value)) is has_names
    assert Config(listen=["127.0.0.1:1080"], ident=ident)
    assert Config(listen=["0.0.0.0:1080"], ident=ident, open=True)
    assert Config(listen=["0.0.0.0:1080"], ident=ident, users={"me": "pw"})


@pytest.mark.parametrize(
    "more",
    [
        {"open": True},
        {"ident": ["10.=alice", "192.0.2.7"]},
        {"users": {"me": "pw"}},
        {"users_file": "users"},
        {"authenticator": print},
    ],
    ids=lambda more: next(iter(more)),
)
def test_beyond_loopback_with_a_reason(more):
    assert Config(listen=["0.0.0.0:1080", "[::]:1080"], **more).listeners[1] == ("::", 1080)


def test_what_was_checked_is_what_counts():
    """Whatever the caller does with the lists, and with passwords he wipes."""
    users, listen = {"me": "pw"}, ["127.0.0.1:0"]
    config = Config(users=users, listen=listen)
    users.clear()
    listen[0] = "0.0.0.0:0"
    assert (config.users, config.listen) == ({"me": "pw"}, ["127.0.0.1:0"])


def test_type_checkers_know_the_same_settings():
    told = {name: kind.__forward_arg__ for name, kind in Keywords.__annotations__.items()}
    settings = {field.name: field.type for field in dataclasses.fields(Config)}
    assert told.keys() == settings.keys()
    assert told == settings


def test_pipes_stay_below_the_kernels_limit_for_one_user():
    assert 1 <= default_max_pipes(1 << 20) <= 64
    assert default_max_pipes(1 << 30) == default_max_pipes(largest_pipe()), "what is granted counts"


def test_sessions_fit_the_descriptors():
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    pipes = 10
    assert default_max_sessions(pipes) >= 1
    if limit != resource.RLIM_INFINITY:
        assert 2 * default_max_sessions(pipes) + 2 * pipes < limit
    assert default_max_sessions(1 << 40) == 1
