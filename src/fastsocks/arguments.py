"""How the commands of fastsocks read arguments, and speak of bad ones: in one line, with
status 2, that repeats nothing which might be a password. It must not know what any of
them means."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TextIO

from fastsocks.flow import printable

UNKNOWN_FLAG = re.compile(r"--[A-Za-z][A-Za-z-]*|-[A-Za-z0-9]")

# What argparse says of --flag=value, where it ends all the same.
IGNORED = re.compile(r"ignored explicit argument .*", re.DOTALL)


def tell(text: str, stream: TextIO, end: str = "\n") -> None:
    """Prints a line; a stream that takes none (a full disk) is ignored, since the status tells
    it too."""
    with contextlib.suppress(OSError, UnicodeError):
        print(text, file=stream, end=end, flush=True)


class Parser(argparse.ArgumentParser):
    """One clear line instead of the usage text in front of it."""

    too_many = "unexpected argument: values follow a flag"

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """As parse_args, with the values of one-letter flags as getopt(3) has them."""
        options, rest = self.parse_known_args(list(self._plain(argv)))
        if rest:
            flag = next(filter(None, map(UNKNOWN_FLAG.match, rest)), None)
            self.error(f"unknown flag {flag[0]}" if flag else self.too_many)
        return options

    def error(self, message: str) -> NoReturn:
        message = IGNORED.sub("takes no value", message)
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        tell(message, file or sys.stderr, end="")

    def _plain(self, argv: Sequence[str]) -> Iterator[str]:
        """argparse refuses a value that begins with "-", and drops a "=" at its beginning."""
        nargs = {name: a.nargs for a in self._actions for name in a.option_strings}
        letters = {name[1]: count for name, count in nargs.items() if len(name) == 2}
        rest = iter(argv)
        for argument in rest:
            flags = list(itertools.takewhile(lambda letter: letters.get(letter) == 0, argument[1:]))
            end = len(flags) + 2
            takes_value = argument[:1] == "-" and letters.get(argument[end - 1 : end], 0) is None
            value = (argument[end:] or next(rest, None)) if takes_value else None
            if value is None:
                yield argument
            elif value[:1] == "-":
                yield argument[:end] + value
            else:
                yield argument[:end]
                yield value
