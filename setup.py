"""Declares the extensions; everything else is in pyproject.toml.

FASTSOCKS_SANITIZE=thread|address builds them under that sanitizer, for the tests
that need one. Where there is no Linux, the package is pure and its engine the
Python one.
"""

import glob
import os
import sys

from setuptools import Extension, setup

SANITIZERS = {
    "": ["-O2", "-g0"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
}
flags = SANITIZERS[os.environ.get("FASTSOCKS_SANITIZE", "")]

extensions = [
    Extension(
        f"fastsocks.{name}",
        [f"src/fastsocks/{name}.pyx"],
        depends=["src/fastsocks/_compat.h", *glob.glob("src/fastsocks/*.pxd")],
        include_dirs=["src/fastsocks"],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=["-Wall", "-Wextra", *flags],
        extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize")],
    )
    for name in ("_address", "_relay", "_udp", "_datagrams", "_front")
]

setup(ext_modules=extensions if sys.platform == "linux" else [])
