# The relay of datagrams has no Python names: its contract is C, in _udp.pxd.
