# Chromium fetches a page through the proxy, by a name that exists only for the proxy: its
# view of /etc/hosts is its own. The page's script then fetches twenty parts at once, each
# checked for its length, and writes the outcome where the test can read it.

from __future__ import annotations

import http.server
import os
import socketserver
import subprocess
import threading
from collections.abc import Iterator

import pytest

RUN_SECONDS = 90
NAME = "page.site.test"
PARTS, PART_SIZE = 20, 300_000

PAGE = f"""<!doctype html><title>page</title><p id="outcome">nothing</p><script>
const one = n => fetch("/part/" + n).then(r => r.arrayBuffer()).then(b => b.byteLength);
Promise.all([...Array({PARTS}).keys()].map(one)).then(sizes => {{
  document.getElementById("outcome").textContent =
    location.hostname + " " + sizes.filter(size => size == {PART_SIZE}).length;
}});
</script>"""

# As root, and without what Chromium does for itself at every start.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=60000",
)


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        part = self.path.startswith("/part/")
        body = bytes(PART_SIZE) if part else PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if part else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass  # pytest would show it


@pytest.fixture
def site() -> Iterator[int]:
    """The port of a site on 127.0.0.1."""

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_page_by_a_name_only_the_proxy_knows(
    start_proxy, need, site, plain_environment, tmp_path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    own_hosts = [need("unshare"), "--mount"]
    if os.geteuid() != 0:
        own_hosts.append("--map-root-user")
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    proxy = start_proxy(through=[*own_hosts, "sh", "-c", script, str(hosts)])
    result = subprocess.run(
        [
            need("chromium"),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--proxy-server=socks5://{proxy.address}",
            "--dump-dom",
            f"http://{NAME}:{site}/",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RUN_SECONDS,
        env=plain_environment,
    )
    assert f">{NAME} {PARTS}<" in result.stdout.decode(), result.stderr.decode(errors="replace")
