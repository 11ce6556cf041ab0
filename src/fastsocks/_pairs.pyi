# What the native engine shows to Python of relayed sessions; see engine.py.

from typing import Any, final

from fastsocks._visits import Turn

@final
class Pairs:
    def __init__(self, settings: Any, turn: Turn) -> None: ...
