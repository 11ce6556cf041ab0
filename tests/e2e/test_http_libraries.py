# aiohttp-socks and httpx through the proxy: what Python programs use that speak HTTP. httpx
# reads each answer of the proxy with one recv(), so that an answer in two pieces breaks it.

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest

CONTENT = os.urandom(1 << 20)
CLIENT_SECONDS = 30
AT_ONCE = 20


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(CONTENT)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(hashlib.sha256(body).digest())

    def log_message(self, *arguments: object) -> None:
        pass  # pytest would show it


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Where it is, by name, which the proxy resolves."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["open", "locked"])
def proxy_part(request: pytest.FixtureRequest, proxy, locked_proxy, login) -> str:
    """The proxy's part of a URL: with user and password where it wants them."""
    if request.param == "open":
        return str(proxy.address)
    return f"{login.user}:{quote(login.password, safe='')}@{locked_proxy.address}"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_httpx(need_module, proxy_part, site, scheme) -> None:
    httpx = need_module("httpx")
    need_module("socksio")
    with httpx.Client(
        proxy=f"{scheme}://{proxy_part}", timeout=CLIENT_SECONDS, trust_env=False
    ) as client:
        assert client.get(site).content == CONTENT
        assert client.post(site, content=CONTENT).content == hashlib.sha256(CONTENT).digest()


def test_httpx_with_asyncio_many_at_once(need_module, proxy_part, site) -> None:
    httpx = need_module("httpx")

    async def everyone() -> list[bytes]:
        async with httpx.AsyncClient(
            proxy=f"socks5h://{proxy_part}", timeout=CLIENT_SECONDS, trust_env=False
        ) as client:
            answers = await asyncio.gather(*(client.get(site) for _ in range(AT_ONCE)))
        return [answer.content for answer in answers]

    assert asyncio.run(everyone()) == [CONTENT] * AT_ONCE


# httpcore leaves a socket to the collector when the handshake with a proxy fails. It comes
# here, as the next test has no part in it.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_httpx_not_let_in(need_module, locked_proxy, login, site) -> None:
    httpx = need_module("httpx")
    url = f"socks5h://{login.user}:{login.wrong}@{locked_proxy.address}"
    with (
        httpx.Client(proxy=url, timeout=CLIENT_SECONDS, trust_env=False) as client,
        pytest.raises(httpx.ProxyError),
    ):
        client.get(site)
    gc.collect()


def test_aiohttp_socks(need_module, proxy_part, site) -> None:
    aiohttp, aiohttp_socks = need_module("aiohttp"), need_module("aiohttp_socks")

    async def everyone() -> tuple[list[bytes], bytes]:
        connector = aiohttp_socks.ProxyConnector.from_url(f"socks5://{proxy_part}", rdns=True)
        limit = aiohttp.ClientTimeout(CLIENT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:

            async def one() -> bytes:
                async with session.get(site) as response:
                    return await response.read()

            pages = await asyncio.gather(*(one() for _ in range(AT_ONCE)))
            async with session.post(site, data=CONTENT) as response:
                return pages, await response.read()

    pages, digest = asyncio.run(everyone())
    assert pages == [CONTENT] * AT_ONCE
    assert digest == hashlib.sha256(CONTENT).digest()


def test_aiohttp_socks_with_socks4a(need_module, proxy, site) -> None:
    aiohttp, aiohttp_socks = need_module("aiohttp"), need_module("aiohttp_socks")

    async def one() -> bytes:
        url = f"socks4://{proxy.address}"
        connector = aiohttp_socks.ProxyConnector.from_url(url, rdns=True)
        limit = aiohttp.ClientTimeout(CLIENT_SECONDS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limit) as session,
            session.get(site) as response,
        ):
            return await response.read()

    assert asyncio.run(one()) == CONTENT
