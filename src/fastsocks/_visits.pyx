# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How a session's coroutine is driven by the native engine, and what it awaits there.

    Visit --sends None to--> coroutine --awaits--> Pending --settled in a Turn--> Visit

Whoever waits for a Pending goes on in the turn of the event that settles it: no handle,
no call_soon, no further turn of the loop. It must not know sockets.
"""

import asyncio

cimport cython
from cpython.exc cimport PyErr_SetObject
from cpython.ref cimport Py_DECREF, PyObject

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(object iterator, object value, PyObject **result) except PYGEN_ERROR


@cython.final
cdef class Turn:
    """Of the front: who is resumed in it goes on at once."""

    cdef resume(self, Visit visit, outcome=None, function=None, context=None):
        """Takes a visit on, or runs a callback, at once where no Task is running, which is in
        a turn of the front but not in what that turn has resumed; else the loop does it soon."""
        if not self.under_way:
            if self.loop.is_closed():
                return  # where nobody can be resumed
            if visit is not None:
                self.loop.call_soon(visit.step)
            else:
                self.loop.call_soon(function, outcome, context=context)
            return
        self.under_way = False
        try:
            if visit is not None:
                visit.step()
            elif context is None:
                function(outcome)
            else:
                context.run(function, outcome)
        except Exception as error:
            self.report(error)
        finally:
            self.under_way = not self.closed

    cdef blame(self, error, fatal):
        """As loops do with what a callback raises: what is to be raised again, once the
        rest of a batch is done; all else is reported."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            return fatal or error
        self.report(error)
        return fatal

    cdef report(self, error):
        self.loop.call_exception_handler(
            {"message": "fastsocks: error in a callback of the engine", "exception": error}
        )


@cython.final
@cython.freelist(256)
cdef class Pending:
    """What recv, send and dial return: often over before anybody awaits it.

    A future as asyncio.Task knows them, but one that resumes its Task at once.
    """

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.over:
            self._asyncio_future_blocking = True
            return self
        if self.error is not None:
            raise self.error
        # What is raised gets a traceback: 2,800 instructions, of a session's 77,000 in user
        # space. No value is a tuple, which would become the exception's arguments.
        # Cython makes the bare raise a return of NULL with no exception of its own set.
        PyErr_SetObject(StopIteration, self.value)
        raise StopIteration

    def get_loop(self):
        return self.turn.loop

    def done(self):
        return self.over

    def cancelled(self):
        return isinstance(self.error, asyncio.CancelledError)

    def result(self):
        if not self.over:
            raise asyncio.InvalidStateError("not over yet")
        if self.error is not None:
            raise self.error
        return self.value

    def exception(self):
        if not self.over:
            raise asyncio.InvalidStateError("not over yet")
        if self.cancelled():
            raise self.error
        return self.error

    def cancel(self, msg=None):
        if self.over:
            return False
        if self.dialled is not None:
            self.dialled.abandon()
        self.settle(None, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def add_done_callback(self, function, *, context=None):
        if self.over:
            self.turn.loop.call_soon(function, self, context=context)
        elif self.callbacks is None:
            self.callbacks = [(function, context)]
        else:
            self.callbacks.append((function, context))

    def remove_done_callback(self, function):
        kept = [entry for entry in self.callbacks or () if entry[0] != function]
        removed = len(self.callbacks or ()) - len(kept)
        self.callbacks = kept
        return removed

    cdef settle(self, object value, object error):
        """Once; resumes whoever waits, and so must be the last thing its caller does."""
        if self.over:
            return
        self.over = True
        self.value = value
        self.error = error
        self.dialled = None
        visit, self.visit = self.visit, None
        if visit is not None:
            self.turn.resume(visit)
        callbacks, self.callbacks = self.callbacks, None
        if callbacks is not None:
            for function, context in callbacks:
                self.turn.resume(None, self, function, context)


cdef Pending settled(Turn turn, object value, object error=None):
    cdef Pending outcome = Pending.__new__(Pending)
    outcome.turn = turn
    outcome.over = True
    outcome.value = value
    outcome.error = error
    return outcome


cdef Pending unsettled(Turn turn):
    cdef Pending outcome = Pending.__new__(Pending)
    outcome.turn = turn
    return outcome


@cython.final
@cython.freelist(256)
cdef class Visit:
    """See engine.Visit. Drives a coroutine as a Task does, and is none for as long as that
    waits for this engine only: a Task is entered in two registers, has a context of its
    own and begins by a handle of the loop, which took 12,000 of a session's 86,000
    instructions in user space.

    Once there has to be a Task, this is its coroutine.
    """

    def begin(self):
        self.turn.resume(self)

    def cancel(self):
        if self.task is not None:
            # What its Task will await, once that begins, as that would do it.
            if self.awaited is None or not self.awaited.cancel():
                self.task.cancel()
        elif self.waits_for is None or not self.waits_for.cancel():
            self.must_cancel = True

    cpdef step(self):
        """To the next wait, or to the end."""
        cdef PyObject *result = NULL
        cdef PySendResult how
        self.waits_for = None
        try:
            if self.must_cancel:
                self.must_cancel = False
                awaited = self.session.throw(asyncio.CancelledError())
            else:
                how = PyIter_Send(self.session, None, &result)
                awaited = <object>result
                Py_DECREF(awaited)
                if how == PYGEN_RETURN:
                    return
        except (asyncio.CancelledError, StopIteration):
            return
        if type(awaited) is Pending:
            self.waits_for = <Pending>awaited
            self.waits_for._asyncio_future_blocking = False
            self.waits_for.visit = self
        else:
            self.awaited = awaited
            self.task = asyncio.Task(self, loop=self.turn.loop, name="fastsocks session")
        if self.must_cancel:  # since it went on, by what it has called
            self.must_cancel = False
            self.cancel()

    # -- what is left of it, for its Task ------------------------------------

    def __await__(self):
        return self

    def send(self, value):
        awaited, self.awaited = self.awaited, None
        return self.session.send(value) if awaited is None else awaited

    def throw(self, *error):
        self.awaited = None
        return self.session.throw(*error)

    def close(self):
        self.session.close()


cdef Visit visit_of(Turn turn, object session):
    cdef Visit visit = Visit.__new__(Visit)
    visit.turn = turn
    visit.session = session
    return visit
