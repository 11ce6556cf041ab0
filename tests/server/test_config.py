# Settings: what is accepted, what it means, and the defaults that depend on the machine.

from __future__ import annotations

import dataclasses
import resource

import pytest

from fastsocks.config import Config, default_max_pipes, default_max_sessions, parse_listener
from fastsocks.errors import ConfigError


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
        pipe_size=1 << 18,
        max_pipes=0,
        max_sessions=7,
        handshake_timeout=1,
        idle_timeout=2,
        half_closed_timeout=3,
    )
    settings = config.settings()
    assert (settings.relay, settings.relay_threads) == ("splice", 3)
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
        ({"listen": "127.0.0.1:1080"}, "listen"),  # a text is a sequence, of letters
        ({"listen": ["127.0.0.1:1080", "nowhere"]}, "listen nowhere"),
        ({"engine": "warp"}, "engine warp"),
        ({"relay": "warp"}, "relay warp"),
        ({"relay_threads": -1}, "relay_threads -1"),
        ({"max_pipes": -1}, "max_pipes -1"),
        ({"max_sessions": 0}, "max_sessions 0"),
        ({"pipe_size": 65535}, "pipe_size 65535"),
        ({"source": "nowhere"}, "source nowhere"),
        ({"users": {"": "x"}}, "user"),
        ({"users": {"me": ""}}, "password"),
        ({"users": {"me": "p" * 256}}, "password"),
        ({"users": {"u" * 256: "p"}}, "user"),
        ({"users": {"me": "\udcff"}}, "password"),
        ({"listen": ["0.0.0.0:1080"]}, "open"),
        ({"users_file": ""}, "users_file"),
        ({"authenticator": "me"}, "authenticator"),
        ({"authenticator": print, "users": {"me": "pw"}}, "authenticator"),
        ({"authenticator": print, "users_file": "users"}, "authenticator"),
        ({"handshake_timeout": float("nan")}, "handshake_timeout nan"),
        ({"idle_timeout": float("inf")}, "idle_timeout inf"),
        ({"grace": -0.1}, "grace -0.1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_setting_is_named(settings, named):
    with pytest.raises(ConfigError, match=named) as caught:
        Config(**settings)
    assert "ppp" not in str(caught.value)


@pytest.mark.parametrize("listen", [["127.255.255.254:1"], ["[::1]:1"], ["localhost:1"]])
def test_loopback_needs_no_user(listen):
    assert not Config(listen=listen).open


@pytest.mark.parametrize(
    "more",
    [
        {"open": True},
        {"users": {"me": "pw"}},
        {"users_file": "users"},
        {"authenticator": print},
    ],
    ids=lambda more: next(iter(more)),
)
def test_beyond_loopback_with_a_reason(more):
    assert Config(listen=["0.0.0.0:1080", "[::]:1080"], **more).listeners[1] == ("::", 1080)


def test_pipes_stay_below_the_kernels_limit_for_one_user():
    assert 1 <= default_max_pipes(1 << 20) <= 64
    assert default_max_pipes(1 << 30) == 1


def test_sessions_fit_the_descriptors():
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    pipes = 10
    assert default_max_sessions(pipes) >= 1
    if limit != resource.RLIM_INFINITY:
        assert 2 * default_max_sessions(pipes) + 2 * pipes < limit
    assert default_max_sessions(1 << 40) == 1
