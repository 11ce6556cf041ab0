# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Socket addresses of the native engine: text and number on the Python side, a
sockaddr on the kernel's. It must not know names: it looks nothing up.
"""

import os

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from fastsocks._linux cimport (
    AF_INET, AF_INET6, EINVAL, IN6_IS_ADDR_V4MAPPED, htons, if_nametoindex, inet_ntop,
    inet_pton, ntohs, sockaddr_in, sockaddr_in6, socklen_t
)


cdef os_error(int number):
    return OSError(number, os.strerror(number))


cdef str ipv4_text(const uint8_t *octets):
    """inet_ntop() goes through printf(); every session asks for two of these."""
    cdef char text[16]
    cdef char *end = text
    cdef int i
    cdef int octet
    for i in range(4):
        octet = octets[i]
        if octet >= 100:
            end[0] = 48 + octet // 100
            end += 1
        if octet >= 10:
            end[0] = 48 + octet // 10 % 10
            end += 1
        end[0] = 48 + octet % 10
        end[1] = 46
        end += 2
    return text[:end - text - 1].decode("ascii")


cdef tuple endpoint_of(Address *address):
    """(host, port) as text and number; IPv4-mapped is IPv4, scopes as %number."""
    cdef char text[64]
    cdef object host
    if address.any.sa_family == AF_INET:
        return ipv4_text(<uint8_t *>&address.v4.sin_addr), ntohs(address.v4.sin_port)
    if address.any.sa_family != AF_INET6:
        return "", 0
    if IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr):
        return ipv4_text(<uint8_t *>&address.v6.sin6_addr + 12), ntohs(address.v6.sin6_port)
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
            address.v6.sin6_scope_id = interface(scope)
        return sizeof(sockaddr_in6)
    raise os_error(EINVAL)


cdef uint32_t interface(str scope) except 0:
    """By its number or name. Raises OSError (EINVAL) where there is none."""
    cdef uint32_t number
    cdef bytes name
    if scope.isascii() and scope.isdigit() and len(scope) < 10:
        number = int(scope)
    else:
        name = scope.encode("utf-8", "replace")
        number = if_nametoindex(name)
    if number == 0:
        raise os_error(EINVAL)
    return number


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
