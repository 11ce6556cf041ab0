# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Socket addresses of the native engine: text and number on the Python side, a
sockaddr on the kernel's. It looks nothing up.
"""

import os

from libc.string cimport memcpy, memset

from fastsocks._linux cimport *


cdef os_error(int number):
    return OSError(number, os.strerror(number))


cdef tuple endpoint_of(Address *address):
    """(host, port) as text and number; IPv4-mapped is IPv4, scopes as %name."""
    cdef char text[64]
    cdef object host
    if address.any.sa_family == AF_INET:
        inet_ntop(AF_INET, &address.v4.sin_addr, text, sizeof(text))
        return text.decode("ascii"), ntohs(address.v4.sin_port)
    if address.any.sa_family != AF_INET6:
        return "", 0
    if IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr):
        inet_ntop(AF_INET, <char *>&address.v6.sin6_addr + 12, text, sizeof(text))
        return text.decode("ascii"), ntohs(address.v6.sin6_port)
    inet_ntop(AF_INET6, &address.v6.sin6_addr, text, sizeof(text))
    host = text.decode("ascii")
    if address.v6.sin6_scope_id:
        host = f"{host}%{address.v6.sin6_scope_id}"
    return host, ntohs(address.v6.sin6_port)


cdef socklen_t parse_address(str host, int port, Address *address) except 0:
    """Raises OSError (EINVAL) for what is no IP literal."""
    cdef bytes literal
    cdef object scope
    memset(address, 0, sizeof(Address))
    plain, _, scope = host.partition("%")
    literal = plain.encode("ascii", "replace")
    if inet_pton(AF_INET, literal, &address.v4.sin_addr) == 1 and not scope:
        address.v4.sin_family = AF_INET
        address.v4.sin_port = htons(port)
        return sizeof(sockaddr_in)
    if inet_pton(AF_INET6, literal, &address.v6.sin6_addr) == 1:
        address.v6.sin6_family = AF_INET6
        address.v6.sin6_port = htons(port)
        if scope:
            name = scope.encode()
            address.v6.sin6_scope_id = int(scope) if scope.isdigit() else if_nametoindex(name)
        return sizeof(sockaddr_in6)
    raise os_error(EINVAL)


cdef socklen_t parse_endpoint(str host, int port, Endpoint *endpoint) except 0:
    """As parse_address, and IPv4-mapped is IPv4."""
    cdef Address address
    parse_address(host, port, &address)
    to_endpoint(&address, endpoint)
    return sizeof(sockaddr_in) if endpoint.any.sa_family == AF_INET else sizeof(sockaddr_in6)


cdef bint to_endpoint(Address *address, Endpoint *endpoint) noexcept nogil:
    """IPv4-mapped becomes IPv4. Whether it is an address of either family at all."""
    memset(endpoint, 0, sizeof(Endpoint))
    if address.any.sa_family == AF_INET:
        endpoint.v4 = address.v4
        return True
    if address.any.sa_family != AF_INET6:
        return False
    if IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr):
        endpoint.v4.sin_family = AF_INET
        endpoint.v4.sin_port = address.v6.sin6_port
        memcpy(&endpoint.v4.sin_addr, <char *>&address.v6.sin6_addr + 12, 4)
    else:
        endpoint.v6 = address.v6
    return True
