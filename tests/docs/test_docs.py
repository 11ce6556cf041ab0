# Shows that the documentation is true: every command in it runs, and every flag and every
# setting is in it.
#
# The word behind ``` says how a block is tried:
#
#     sh test       succeeds, or starts a server, which is stopped as soon as it listens
#     sh lines      the same for each line by itself, with addresses of this machine put in
#     sh client     is what somebody does while a proxy serves; each line has to print a page
#     sh fails      is refused with one line and status 2
#     sh make       names targets of the Makefile; what "make run" does is shown as well
#     sh install    names extras that there are
#     sh root       changes the machine: tried in a network of its own, or read only where the
#                   setting is no network's
#     python test   succeeds
#
# Any other kind is no command. $PORT is a free port.

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastsocks.config import Config
from support.commands import LISTENING, PATIENCE, here, running, start
from support.namespaces import bare_network, own_network
from support.programs import first_line, missing, need, plain_environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
SYSCTL = re.compile(r"sysctl -w ([\w.-]+)=('?)([\w ]+)\2")
# Not of a network: to try them would change the machine that the tests run on.
OF_THE_MACHINE = {"fs.pipe-user-pages-soft", "net.core.rmem_max", "net.core.wmem_max"}
GREET = """
import socket
with socket.create_connection(("127.0.0.1", 1080), 30) as client:
    client.sendall(b"\\5\\1\\0")
    print(client.recv(2).hex())
"""

PAGE = b"a page"


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    text: str


def blocks() -> list[Block]:
    return [
        Block(path.name, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])
        for path in PAGES
        for text in [path.read_text("utf-8")]
        for found in FENCE.finditer(text)
    ]


def of(*kinds: str) -> list[object]:
    chosen = [block for block in blocks() if block.kind in kinds]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in chosen]


def lines(*kinds: str) -> list[object]:
    return [
        pytest.param(block._replace(text=line), id=f"{block.page}:{block.line + number}")
        for block in blocks()
        if block.kind in kinds
        for number, line in enumerate(block.text.splitlines(), 1)
        if line.strip()
    ]


def settings_of_a_network() -> list[str]:
    texts = [block.text for block in blocks() if block.kind == "sh root"]
    return [
        line
        for line in "".join(texts).splitlines()
        if not any(name in line for name in OF_THE_MACHINE)
    ]


@pytest.mark.parametrize("block", of("sh test", "python test"))
def test_what_the_docs_tell_to_run_runs(block, tmp_path):
    with running(block.kind, block.text, tmp_path) as said:
        assert said, "a command in the docs that shows nothing"


@pytest.mark.parametrize("block", lines("sh lines"))
def test_each_line_serves(block, tmp_path):
    (tmp_path / "secret").write_text("a long password\n")
    subprocess.run(
        [sys.executable, "-m", "fastsocks", "passwd", "users", "me"],
        cwd=tmp_path,
        input=b"a long password\n",
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    with running(block.kind, here(block.text), tmp_path) as said:
        assert LISTENING in said


@pytest.mark.parametrize("block", lines("sh client"))
def test_a_client_gets_its_page(block, tmp_path, page):
    program = need(block.text.split()[0])
    with running("sh", "exec fastsocks --listen 127.0.0.1:$PORT --allow all", tmp_path) as said:
        where = re.search(r"listening on (127\.0\.0\.1:\d+) ", said)[1]
        command = block.text.replace("127.0.0.1:1080", where).replace("https://example.org/", page)
        assert command.count(where) == command.count(page) == 1
        got = subprocess.run(
            [program, *shlex.split(command)[1:]],
            capture_output=True,
            timeout=PATIENCE,
            env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        )
    assert got.stdout == PAGE, got.stderr


@pytest.mark.parametrize("block", of("sh fails"))
def test_it_is_refused(block, tmp_path):
    process = start(block.kind, block.text, tmp_path)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize("block", lines("sh make"))
def test_the_makefile_has_it(block):
    program, target = block.text.split()[:2]
    assert program == "make"
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.linux
def test_the_first_command_of_all_serves():
    """`make run`, where nobody else has its port; what it would build is there."""
    bindir = Path(sys.executable).parent
    environment = {
        name: value
        for name, value in plain_environment().items()
        if not name.startswith(("MAKE", "MFLAGS"))  # of the one that runs the tests
    }
    make = [need("make"), "-s", "-C", str(ROOT), "-o", ".venv/installed", f"BIN={bindir}", "run"]
    with own_network() as enter:
        process = subprocess.Popen(
            [*enter, *make],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            assert first_line(process).startswith(f"{LISTENING} 127.0.0.1:1080 ")
            greet = [*enter, sys.executable, "-c", GREET]
            assert subprocess.check_output(greet, text=True, timeout=PATIENCE) == "0500\n"
            process.terminate()
            # Which make hands on; the output ends with the last that holds it.
            said, _ = process.communicate(timeout=PATIENCE)
            assert b"Traceback" not in said
            assert process.returncode == -signal.SIGTERM, said
            assert subprocess.run(greet, capture_output=True, timeout=PATIENCE).returncode == 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
            process.stdout.close()


@pytest.mark.parametrize("block", lines("sh install"))
def test_there_are_such_extras(block):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = re.match(r"pip install (?:\.|'\.\[([\w,]+)\]')(?: |$)", block.text)
    assert found, f"cannot be checked: {block.text}"
    extras = set(found[1].split(",")) if found[1] else set()
    assert extras <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("block", of("sh root"))
def test_it_names_what_the_kernel_has(block):
    for line in block.text.splitlines():
        found = SYSCTL.fullmatch(line)
        assert found, f"cannot be checked: {line}"
        path = Path("/proc/sys", *found[1].split("."))
        assert path.exists() or not path.parent.exists(), line


@pytest.mark.linux
@pytest.mark.parametrize("line", settings_of_a_network())
def test_the_kernel_takes_it(line):
    _, name, _, value, _ = SYSCTL.split(line)
    enter = bare_network()
    if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:
        missing("a /proc/sys that may be written to", "run the tests outside this container")
    need("sysctl")
    # Its status is 0 whatever the kernel says.
    script = f"{line}; sysctl -n {name}"
    said = subprocess.run(
        [*enter, "sh", "-ec", script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert not said.stderr
    assert said.stdout.splitlines()[-1].split() == value.split()


def test_no_command_goes_unmarked():
    documented = re.findall(
        r"^#     (\w+ \w+) {2,}", Path(__file__).read_text("utf-8"), re.MULTILINE
    )
    known = {*documented, "text", "ini", "yaml"}
    assert [block for block in blocks() if block.kind not in known] == []


def test_the_flags_are_those_of_the_program():
    written = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "flags.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    page = (ROOT / "docs" / "flags.md").read_text("utf-8")
    assert page == written.stdout, "run tools/flags.py > docs/flags.md"


def test_every_setting_of_a_server_is_told_with_its_default():
    page = (ROOT / "docs" / "python-api.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", page, re.MULTILINE))
    default = Config()
    assert told == {
        field.name: repr(getattr(default, field.name)) for field in dataclasses.fields(Config)
    }


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        page, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / page) if page else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made of them where it is shown."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w -]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.fixture
def page() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *arguments: object) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
