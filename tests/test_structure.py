# The layout is part of the design: what each module may know of the others is checked
# here on the source itself, so that a convenient import cannot undo it unnoticed.

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "fastsocks"
PYTHON = sorted(PACKAGE.rglob("*.py"))
CYTHON = sorted(path for kind in ("*.pyx", "*.pxd") for path in PACKAGE.rglob(kind))
PROTO = sorted((PACKAGE / "proto").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Whatever could make the outcome depend on something but the octets fed.
IMPURE = {
    "asyncio",
    "concurrent",
    "datetime",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "threading",
    "time",
    "uvloop",
}
STAGES = {"addresses", "associate", "auth", "authenticator", "bind", "resolve", "dial", "ident"}
# Who may know which stage: the session runs them, the server makes them, whoever lets a
# client reach an address resolves and has it judged, the configuration is checked by those
# who use it, and what a program may pass to a stage is public.
STAGE_USERS = {
    "__init__": {"authenticator"},
    "keywords": {"authenticator"},
    "session": STAGES,
    "server": STAGES,
    "config": {"addresses", "authenticator", "resolve"},
    **{module: {"addresses", "resolve"} for module in ("associate", "bind", "dial")},
}
# The program around it all.
PROGRAM = {
    *("server", "config", "keywords", "fields", "configure", "flags", "cli"),
    *("passwd", "arguments", "jsocks", "journal"),
}
# What the stages stand on.
HELPERS = [
    *("backoff", "passwords", "users_file", "ranges", "hosts", "literals"),
    *("clients", "turns", "crew", "waits", "places", "routes", "names"),
]
# Who looks a name up, listens, is given sockets by the caller, chooses the loop, or asks
# whether standard error can be written to.
SOCKET_USERS = {
    *("addresses", "bind", "cli", "engine", "hosts", "library", "names", "resolve", "routes"),
    *("server", "journal"),
}
# Modules in C are the native engine, however many it is cut into.
PYTHON_ENGINE = {"pure", "pure_conn", "pure_idle", "pure_relay", "pure_udp"}
ENGINES = {*PYTHON_ENGINE, *(path.stem for path in CYTHON if path.suffix == ".pyx")}
MACHINES = {"proto.socks4", "proto.socks5", "proto.foreign"}

IMPORT_LINE = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import\s+(\w+)|c?import\s+(\S+))")


def name(path: Path) -> str:
    """The module as the package knows it: ``session``, ``proto.wire``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Every module a Python file imports, wherever in it, in absolute form; for
    ``from package import thing`` both the package and the thing."""
    found: set[str] = set()
    package = ["fastsocks", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


def own(path: Path) -> set[str]:
    """The modules of this package that a file imports, without the package's name."""
    prefix = "fastsocks."
    modules = {name(other) for other in PYTHON} | {name(other) for other in CYTHON}
    return {
        module.removeprefix(prefix) for module in imports(path) if module.startswith(prefix)
    } & (modules | {"proto"})


def cython_imports(path: Path) -> set[str]:
    """The modules of a Cython file, by the first line of each statement."""
    found: set[str] = set()
    for line in path.read_text("utf-8").splitlines():
        if match := IMPORT_LINE.match(line):
            package, thing, module = match.groups()
            found |= {f"fastsocks.{thing}"} if package == "fastsocks" else {package or module}
    return found


def test_the_package_is_where_the_tests_think():
    assert {"session", "server", "engine", "pure", "proto.socks5"} <= {name(p) for p in PYTHON}
    assert "_relay" in {name(path) for path in CYTHON if path.suffix == ".pyx"}


# -- proto -------------------------------------------------------------------


@pytest.mark.parametrize("path", PROTO, ids=label)
def test_proto_touches_nothing_outside(path):
    assert not roots(path) & IMPURE


@pytest.mark.parametrize("path", PROTO, ids=label)
def test_proto_knows_itself_and_the_errors_only(path):
    assert {module for module in own(path) if not module.startswith("proto")} <= {"errors"}


@pytest.mark.parametrize("path", PROTO, ids=label)
def test_proto_opens_and_prints_nothing(path):
    names = {
        node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
    }
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}


def test_socks4_and_socks5_do_not_know_each_other():
    assert "proto.socks5" not in own(PACKAGE / "proto" / "socks4.py")
    assert "proto.socks4" not in own(PACKAGE / "proto" / "socks5.py")


# -- stages ------------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_stages_meet_in_the_session_only(path):
    known = own(path) & STAGES
    assert known <= STAGE_USERS.get(name(path), set()), f"{name(path)} imports {sorted(known)}"


def test_the_session_is_where_they_meet():
    assert {"associate", "auth", "bind", "dial", "ident"} <= own(PACKAGE / "session.py")


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_only_the_session_knows_the_machines(path):
    if not name(path).startswith("proto"):
        known = own(path) & (MACHINES | {"proto.machine"})
        assert not known or name(path) == "session"


@pytest.mark.parametrize(
    "stage", sorted(STAGES | {"session", "errors", "flow", "quiet", "capacity", *HELPERS})
)
def test_nothing_below_the_server_knows_it(stage):
    assert not own(PACKAGE / f"{stage}.py") & (PROGRAM | {"library"})


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_sockets_are_the_business_of_few(path):
    if name(path) not in {*PYTHON_ENGINE, *SOCKET_USERS}:
        assert not roots(path) & {"select", "selectors", "socket", "ssl", "uvloop"}


def test_errors_know_nothing():
    assert not own(PACKAGE / "errors.py")
    assert roots(PACKAGE / "errors.py") <= {"__future__", "enum", "errno"}


# -- engines -----------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_only_the_chooser_knows_the_engines(path):
    known = own(path) & ENGINES
    if name(path) in PYTHON_ENGINE:
        known -= PYTHON_ENGINE
    assert not known or name(path) == "engine"


@pytest.mark.parametrize("module", sorted({"engine", "library", *PYTHON_ENGINE} - {"pure_udp"}))
def test_engines_and_the_relay_alone_do_not_know_socks(module):
    known = own(PACKAGE / f"{module}.py")
    assert not known & (STAGES | PROGRAM | {"session", "flow"})
    assert not [one for one in known if one.startswith("proto")]


def test_of_socks_the_python_engine_knows_the_header_of_datagrams():
    known = own(PACKAGE / "pure_udp.py")
    assert not known & (STAGES | PROGRAM | {"session", "flow"})
    assert {one for one in known if one.startswith("proto.")} <= {"proto.udp", "proto.wire"}


@pytest.mark.parametrize("path", CYTHON, ids=label)
def test_the_native_engine_does_not_know_socks(path):
    allowed = {"engine", "errors", "quiet"} | {name(other) for other in CYTHON}
    known = {module for module in cython_imports(path) if module.startswith(("fastsocks", "."))}
    assert {module.removeprefix("fastsocks.") for module in known} <= allowed


@pytest.mark.parametrize("module", sorted(PYTHON_ENGINE))
def test_the_python_engine_uses_no_uvloop_of_its_own(module):
    assert "uvloop" not in roots(PACKAGE / f"{module}.py")


@pytest.mark.parametrize("path", CYTHON, ids=label)
def test_cython_is_included_by_nobody(path):
    # Textual inclusion makes files that neither compile nor read alone.
    text = path.read_text("utf-8")
    assert not re.search(r"^\s*include\s+[\"']", text, re.MULTILINE)
    assert not re.search(r"^\s*(DEF|IF)\s", text, re.MULTILINE), "deprecated in Cython 3"


# -- every file --------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_python_file_says_first_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


# Of which nothing else could be asked, and those that their package's sentence is about.
PLAIN = {*PROTO, *(PACKAGE / f"{module}.py" for module in ("__init__", "__main__", "_version"))}


@pytest.mark.parametrize("path", sorted({*PYTHON, *PACKAGE.rglob("*.pyx")} - PLAIN), ids=label)
def test_file_says_first_what_it_must_not_know(path):
    lines = itertools.dropwhile(lambda line: "cython:" in line, path.read_text("utf-8").split("\n"))
    text = "\n".join(lines)
    first = text.split('"""')[1] if text.startswith('"""') else text.partition("\n\n")[0]
    assert "must not know" in " ".join(first.replace("#", " ").split())


@pytest.mark.parametrize("path", CYTHON, ids=label)
def test_cython_file_says_first_what_it_is_for(path):
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    prose = [line for line in lines if not line.lstrip().startswith("# cython:")]
    assert prose[0].startswith(("#", '"""')), prose[0]


@pytest.mark.parametrize("path", TESTS, ids=label)
def test_test_file_says_first_what_it_is_for(path):
    text = path.read_text("utf-8")
    first = next(tokenize.generate_tokens(io.StringIO(text).readline), None)
    assert first is not None
    assert first.type in (tokenize.COMMENT, tokenize.STRING), first.line


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_imports_are_explicit(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"line {node.lineno}: a relative import beyond one dot"
            assert [alias.name for alias in node.names] != ["*"], f"line {node.lineno}"


@pytest.mark.parametrize("path", CYTHON, ids=label)
def test_cython_imports_are_explicit(path):
    assert not re.search(r"import \*", path.read_text("utf-8"))


@pytest.mark.parametrize("path", PYTHON, ids=label)
def test_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), node.lineno


@pytest.mark.parametrize("path", PYTHON + CYTHON, ids=label)
def test_source_is_plain_text(path):
    raw = path.read_bytes()
    assert b"\t" not in raw
    assert b"\r" not in raw
    assert not raw or raw.endswith(b"\n")
    assert raw.isascii(), "an octet beyond ASCII"
