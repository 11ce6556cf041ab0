"""Writes docs/flags.md from the parsers: tools/flags.py > docs/flags.md"""

from __future__ import annotations

import argparse

from fastsocks import passwd
from fastsocks.flags import build_parser

HEAD = """\
# Every flag

Written by `tools/flags.py` from the program's own parsers; a test keeps it up to date.
Exit status: 0 stopped as asked, 1 could not run, 2 wrong usage or settings, 130 interrupted
before it served; every error is one line.
"""

SECTION = """
## {prog}

{text}

| flag | what it does |
|---|---|
"""


def page() -> str:
    return HEAD + "".join(section(build()) for build in (build_parser, passwd.build_parser))


def section(parser: argparse.ArgumentParser) -> str:
    text = " ".join(filter(None, (parser.description, parser.epilog)))
    rows = [row(action) for action in parser._actions if action.help is not argparse.SUPPRESS]
    return SECTION.format(prog=parser.prog, text=text) + "".join(rows)


def row(action: argparse.Action) -> str:
    # An argument that is no flag has no option strings; one with "+" may have several values.
    value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
    value = f"{value}{'...' if action.nargs == '+' else ''}"
    flags = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    names = ", ".join(f"`{flag}`" for flag in flags)
    # argparse reads "%%" as a percent sign; a table reads "|" as the end of a cell.
    text = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {names} | {text} |\n"


if __name__ == "__main__":
    print(page(), end="")
