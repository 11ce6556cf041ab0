"""Declares the extensions, one for each .pyx; everything else is in pyproject.toml.

Where there is no 64-bit Linux there are none: the package is pure, its engine the Python one.
Switches, all in the environment:

FASTSOCKS_PURE=1       no extensions here either
FASTSOCKS_SYMBOLS=1    keeps the names of functions, for profilers
FASTSOCKS_TRACE=1      with line tracing, for coverage; never to be timed
FASTSOCKS_SANITIZE=thread|address    under ThreadSanitizer, or ASAN and UBSAN
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("src/fastsocks")
SANITIZERS = {
    "": [],
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
TRACING = [
    ("CYTHON_TRACE", "1"),
    ("CYTHON_TRACE_NOGIL", "1"),
    # coverage has no sys.monitoring core that knows Cython.
    ("CYTHON_USE_SYS_MONITORING", "0"),
]


def asked(switch: str) -> bool:
    return os.environ.get(f"FASTSOCKS_{switch}", "0") not in ("", "0")


def extension(source: Path) -> Extension:
    sanitizer = SANITIZERS[os.environ.get("FASTSOCKS_SANITIZE", "")]
    trace = asked("TRACE")
    debug = ["-O1", "-g", "-fno-omit-frame-pointer"] if sanitizer else ["-O2", "-g0"]
    strip = [] if sanitizer or trace or asked("SYMBOLS") else ["-Wl,--strip-all"]
    result = Extension(
        f"fastsocks.{source.stem}",
        [str(source)],
        depends=sorted(str(path) for kind in ("*.pxd", "*.h") for path in PACKAGE.glob(kind)),
        include_dirs=[str(PACKAGE)],
        define_macros=[("_GNU_SOURCE", "1"), *(TRACING if trace else [])],
        extra_compile_args=["-Wall", "-Wextra", *debug, *sanitizer],
        extra_link_args=[*strip, *sanitizer],
    )
    result.cython_directives = {"linetrace": True} if trace else {}
    return result


native = sys.platform == "linux" and sys.maxsize > 1 << 32 and not asked("PURE")
setup(ext_modules=[extension(source) for source in sorted(PACKAGE.glob("*.pyx"))] if native else [])
