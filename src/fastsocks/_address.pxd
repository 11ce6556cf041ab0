# Socket addresses of the native engine, as C has them and as Python does.

from fastsocks._linux cimport sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t


cdef union Address:             # of any family
    sockaddr any
    sockaddr_in v4
    sockaddr_in6 v6
    sockaddr_storage storage


cdef union Endpoint:            # of IPv4 or IPv6, in a quarter of the room
    sockaddr any
    sockaddr_in v4
    sockaddr_in6 v6


cdef os_error(int number)
cdef tuple endpoint_of(Address *address)
cdef socklen_t parse_address(str host, int port, Address *address) except 0
cdef socklen_t parse_endpoint(str host, int port, Endpoint *endpoint) except 0
cdef bint to_endpoint(Address *address, Endpoint *endpoint) noexcept nogil
