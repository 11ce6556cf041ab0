# Shows that the documentation is true: every command in it runs, every flag and every setting
# is in it, and what starts the program in a container or as a service uses flags that it has.
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
import json
import os
import re
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastsocks.config import Config
from support.namespaces import bare_network, own_network
from support.programs import first_line, missing, need, plain_environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
PATIENCE = 30
LISTENING = "fastsocks listening on"
SYSCTL = re.compile(r"sysctl -w ([\w.-]+)=('?)([\w ]+)\2")
# Not of a network: to try them would change the machine that the tests run on.
OF_THE_MACHINE = {"fs.pipe-user-pages-soft", "net.core.rmem_max", "net.core.wmem_max"}
GREET = """
import socket
with socket.create_connection(("127.0.0.1", 1080), 30) as client:
    client.sendall(b"\\5\\1\\0")
    print(client.recv(2).hex())
"""

# What the pages say about a reader's machine, and what it is here.
ELSEWHERE = (
    ("fastsocks  ", "fastsocks --listen 127.0.0.1:$PORT  "),  # without flags
    ("192.0.2.1", "127.0.0.1"),
    ("1080", "$PORT"),
    ("1081", "0"),
)
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(kind: str, text: str, where: Path, **environment: str) -> subprocess.Popen[str]:
    program = [sys.executable] if kind.startswith("python") else ["sh", "-e"]
    (where / "block").write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "PORT": str(free_port()), **environment}
    return subprocess.Popen(
        [*program, "block"],
        cwd=where,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a shell has started is stopped with it
    )


@contextlib.contextmanager
def running(kind: str, text: str, where: Path, **environment: str) -> Iterator[str]:
    """What it has said by the time that it listens, or has ended well."""
    process = start(kind, text, where, **environment)
    hurry = threading.Timer(2 * PATIENCE, process.kill)  # else a silent one is waited for
    hurry.start()
    try:
        said = ""
        while line := process.stdout.readline():
            said += line
            if line.startswith(LISTENING):
                break
        else:
            assert process.wait(PATIENCE) == 0, said
        yield said
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            said += process.stdout.read()
            # A shell with several commands dies by the signal, fastsocks says that it stops.
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM), said
        assert "Traceback" not in said
    finally:
        hurry.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
        process.stdout.close()


def here(text: str) -> str:
    for theirs, ours in ELSEWHERE:
        text = text.replace(theirs, ours)
    return text


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


# -- where others start it ---------------------------------------------------


class Answering(socketserver.BaseRequestHandler):
    """As a web server answers what is not HTTP."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def stages() -> list[list[str]]:
    """The instructions of each stage of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    instructions = text.replace("\\\n", " ").split("\nFROM ")
    return [f"FROM {stage}".splitlines() for stage in instructions[1:]]


def instruction(pattern: str) -> str:
    """What stands in the one instruction of the last stage that the pattern matches."""
    [found] = [match for line in stages()[-1] if (match := re.fullmatch(pattern, line))]
    return found[1]


def probe_of(port: int) -> list[str]:
    python, *arguments = json.loads(instruction(r"HEALTHCHECK .* CMD (\[.*\])"))
    assert python == "python"
    return [sys.executable, *(argument.replace("1080", str(port)) for argument in arguments)]


def test_the_container_has_no_compiler_and_is_not_root():
    build, final = stages()
    name = re.fullmatch(r"FROM \S+ AS (\w+)", build[0])[1]
    assert instruction(rf"COPY --from={name} (\S+) \1")
    assert not [line for line in final if line.startswith("RUN")]
    # A number, of which Kubernetes can see that it is not root's.
    assert int(instruction(r"USER (\d+):[1-9]\d*")) > 0


def test_the_container_is_built_of_all_that_pip_reads():
    assert "COPY . ." in stages()[0]
    patterns = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert not [line for line in patterns if set(line) & set("!?[\\#")], "cannot be checked"
    globs = "|".join(
        re.escape(line).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*") for line in patterns
    )
    ignored = re.compile(rf"(?:{globs})(?:/.*)?")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    read = ["pyproject.toml", "setup.py", project["readme"], *project["license-files"]]
    kinds = {".py", ".pyi", ".pyx", ".pxd", ".h", ".typed"}
    sources = [path for path in (ROOT / "src" / "fastsocks").rglob("*") if path.suffix in kinds]
    assert {path.suffix for path in sources} == kinds
    read += [path.relative_to(ROOT).as_posix() for path in sources]
    assert [path for path in read if ignored.fullmatch(path)] == []
    # What was built here is for another machine.
    for built in ("src/fastsocks/_udp.c", "src/fastsocks/_udp.cpython-314.so", ".venv/bin/python"):
        assert ignored.fullmatch(built)


def test_the_container_is_found_ill(refused_port):
    """Where nobody listens, and where somebody else does."""
    with socketserver.TCPServer(("127.0.0.1", 0), Answering) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            for port in (refused_port, other.server_address[1]):
                probed = subprocess.run(probe_of(port), capture_output=True, timeout=PATIENCE)
                assert probed.returncode == 1, probed.stderr
        finally:
            other.shutdown()
            thread.join()


def test_the_container_serves_and_is_found_healthy(tmp_path):
    entry = json.loads(instruction(r"ENTRYPOINT (\[.*\])"))
    flags = json.loads(
        re.search(r"command: (\[.*\])", (ROOT / "compose.yaml").read_text("utf-8"))[1]
    )
    port = str(free_port())
    command = shlex.join([*entry, *flags]).replace("1080", port)
    with running("sh", f"exec {command}", tmp_path, FASTSOCKS_PASSWORD="secret") as said:
        assert said.startswith(f"{LISTENING} 0.0.0.0:{port} ")
        subprocess.run(probe_of(int(port)), check=True, timeout=PATIENCE)


def test_the_unit_has_flags_that_serve(tmp_path):
    unit = (ROOT / "contrib" / "fastsocks.service").read_text("utf-8")
    flags = re.search(r"^#\s+FLAGS=(.*)$", unit, re.MULTILINE)[1]
    users = tmp_path / "users"
    subprocess.run(
        [sys.executable, "-m", "fastsocks", "passwd", str(users), "me"],
        input=b"a long password\n",
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    flags = here(flags).replace("/run/credentials/fastsocks.service/users", str(users))
    with running("sh", f"exec fastsocks {flags}", tmp_path) as said:
        assert LISTENING in said


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
