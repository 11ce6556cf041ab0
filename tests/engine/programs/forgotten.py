# Makes native engines that nobody closes, in cycles for the garbage collector, and prints how
# many of their threads are left. With PYTHONMALLOC=debug, what was freed too early is not
# what it was.
#
#     forgotten.py

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

from fastsocks import engine as contract


class Holder:
    engine: Any
    myself: Any


def forget_one() -> None:
    """The engine's own cycle is with its loop; a younger one is what the collector takes
    apart first, and clears all that it leads to before anything is freed."""
    engine = contract.choose("native", asyncio.SelectorEventLoop(), contract.Settings(), print)
    younger = Holder()
    younger.myself, younger.engine = younger, engine


gc.disable()
for _ in range(20):
    forget_one()
    gc.collect()
print(len(os.listdir("/proc/self/task")) - 1)
