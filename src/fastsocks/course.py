"""A session's coroutine under way.

A Task would do the same and more (a name, a context, a weak reference in the loop,
a turn of the loop before it begins and one after each wait), and cost a tenth of a
short session. A session needs none of that: it begins when its first octets are
there, goes on when what it waits for is over, and is ended by closing it. What it
must not do is ask for the current task, as asyncio.timeout() does; code that may
(a user's) is awaited in a Task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Course:
    """Runs a coroutine to its end; in ``courses``, which keeps it alive, until then."""

    __slots__ = ("_coroutine", "_courses", "_over")

    def __init__(self, coroutine: Coroutine[Any, None, None], courses: set[Course]) -> None:
        self._coroutine = coroutine
        self._courses = courses
        self._over = False
        courses.add(self)

    def advance(self, _waited: object = None) -> None:
        """To the next wait, or to the end. What came of the last wait, a value or
        an error, the awaited future tells the coroutine itself."""
        if self._over:
            return
        try:
            waited = self._coroutine.send(None)
        except BaseException as error:
            self._end()
            if not isinstance(error, StopIteration):
                raise
            return
        if waited is None:  # asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(self.advance)
            return
        waited._asyncio_future_blocking = False
        waited.add_done_callback(self.advance)

    def close(self) -> None:
        """Ends it where it waits, by GeneratorExit, so that its ``finally`` runs."""
        self._end()
        self._coroutine.close()

    def _end(self) -> None:
        self._over = True
        self._courses.discard(self)
