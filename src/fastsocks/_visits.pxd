# What the front (_front.pyx) needs of the awaitables and of who goes on when.


cdef class Turn:
    cdef object loop
    cdef bint under_way         # and no one whom it has resumed is still running
    cdef bint closed            # the engine is: none begins

    cdef resume(self, Visit visit, outcome=*, function=*, context=*)
    cdef report(self, error)
    cdef blame(self, error, fatal)


cdef class Pending:
    cdef public bint _asyncio_future_blocking
    cdef Turn turn
    cdef bint over
    cdef object value
    cdef object error
    cdef Visit visit            # that waits for it
    cdef list callbacks         # (function, context) of others; made when there is one
    cdef object dialled         # what cancel() has to abandon, while it is under way

    cdef settle(self, object value, object error)


cdef class Visit:
    cdef Turn turn
    cdef object session         # the coroutine that is driven
    cdef Pending waits_for
    cdef object awaited         # by the session, when it became a Task
    cdef readonly object task
    cdef bint must_cancel       # as soon as it goes on

    cpdef step(self)


cdef Pending settled(Turn turn, object value, object error=*)
cdef Pending unsettled(Turn turn)
cdef Visit visit_of(Turn turn, object session)
