# Shows that what starts the program in a container or as a service is whole: the Dockerfile and
# its health check, the Compose file, and the unit of systemd.
#
# Must not know: what the documentation says of them.

from __future__ import annotations

import json
import re
import shlex
import socketserver
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

from support.commands import LISTENING, PATIENCE, free_port, here, running

ROOT = Path(__file__).parents[2]


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
