# What the native engine shows to Python of UDP associations; see engine.py.

from typing import Any, final

@final
class Association:
    @property
    def sockname(self) -> tuple[str, int]: ...
    def answer(
        self, atyp: int, raw: bytes, port: int, address: tuple[str, int] | None, ttl: float
    ) -> None: ...
    def close(self) -> None: ...

@final
class Datagrams:
    def __init__(self, settings: Any) -> None: ...
