"""The load generators, compiled when they are first needed."""

from __future__ import annotations

import os
import subprocess

from system import BUILD, HERE

PROGRAMS = {
    "load": ("load.c", "origin.c", "client.c", "common.c"),
    "udp": ("udp.c", "common.c"),
}


def generator(name: str) -> str:
    return str(BUILD / name)


def compile_generators() -> None:
    BUILD.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    for name, sources in PROGRAMS.items():
        built = BUILD / name
        if built.exists() and built.stat().st_mtime > newest:
            continue
        compiler = os.environ.get("CC", "gcc")
        flags = ("-std=c11", "-O2", "-Wall", "-Wextra")
        paths = [HERE / source for source in sources]
        subprocess.run([compiler, *flags, "-o", built, *paths], check=True)
