"""fastsocks: a SOCKS4, SOCKS4a and SOCKS5 proxy server.

``Server`` runs one inside a program; ``relay`` is its engine as a function.
"""

from fastsocks._version import __version__
from fastsocks.errors import ConfigError
from fastsocks.library import Outcome, relay
from fastsocks.server import Server

__all__ = ["ConfigError", "Outcome", "Server", "__version__", "relay"]
