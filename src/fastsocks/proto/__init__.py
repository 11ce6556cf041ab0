"""The SOCKS protocols as machines that never touch a socket.

Bytes go in by ``feed``, events come out of ``next_event``, and every reply is
built by the machine that knows in which state it is due. Nothing in this
package imports sockets, asyncio, clocks or logging; a test enforces it.
"""
