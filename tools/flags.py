"""Writes docs/flags.md from the parser: tools/flags.py > docs/flags.md"""

from __future__ import annotations

import argparse

from fastsocks.cli import build_parser

HEAD = """\
# Every flag

Written by `tools/flags.py` from the program's own parser; a test keeps it up to date.
{epilog}

| flag | what it does |
|---|---|
"""


def page() -> str:
    parser = build_parser()
    rows = [row(action) for action in parser._actions if action.help is not argparse.SUPPRESS]
    return HEAD.format(epilog=parser.epilog) + "".join(rows)


def row(action: argparse.Action) -> str:
    value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
    names = ", ".join(f"`{name}{value}`" for name in action.option_strings)
    # argparse reads "%%" as a percent sign; a table reads "|" as the end of a cell.
    text = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {names} | {text} |\n"


if __name__ == "__main__":
    print(page(), end="")
