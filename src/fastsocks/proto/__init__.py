"""What is on the wire, read and written without ever touching a socket.

SOCKS4 and SOCKS5 are machines: bytes go in by ``feed``, events come out of
``next_event``, and every reply is built by the machine that knows what is due. The
header of datagrams, ident and what is no SOCKS at all are functions. Nothing in this
package imports sockets, asyncio, clocks or logging; a test enforces it.
"""
