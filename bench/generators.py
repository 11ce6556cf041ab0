"""The load generators, compiled when they are first needed."""

from __future__ import annotations

import os
import subprocess

from system import BUILD, HERE


def generator(name: str) -> str:
    return str(BUILD / name)


def compile_generators() -> None:
    BUILD.mkdir(exist_ok=True)
    for name in ("load", "udp"):
        sources = [HERE / f"{name}.c", HERE / "common.h"]
        built = BUILD / name
        if built.exists() and built.stat().st_mtime > max(s.stat().st_mtime for s in sources):
            continue
        compiler = os.environ.get("CC", "gcc")
        subprocess.run(
            [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-o", built, sources[0]], check=True
        )
