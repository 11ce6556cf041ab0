"""fastsocks: a SOCKS4, SOCKS4a and SOCKS5 proxy server.

``Server`` runs one inside a program; ``relay`` is its engine as a function.
"""

from fastsocks._version import __version__
from fastsocks.authenticator import Authenticator
from fastsocks.errors import ConfigError
from fastsocks.library import Outcome, relay
from fastsocks.proto.wire import Credentials
from fastsocks.server import Server

__all__ = [
    "Authenticator",
    "ConfigError",
    "Credentials",
    "Outcome",
    "Server",
    "__version__",
    "relay",
]
