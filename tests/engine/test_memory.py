# Where there is no memory left for a while, nothing that ends meanwhile is lost.
#
# Must not know: how an engine keeps its books.

from __future__ import annotations

import json

import pytest


@pytest.mark.linux  # which keeps RLIMIT_AS
def test_what_ends_without_memory_is_told_of_later(program):
    process = program("short_of_memory")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    assert json.loads(out) == {"told": 600, "slots": 0, "descriptors": 0}
