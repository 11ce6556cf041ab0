# The relay has no Python names: its contract is C, in _relay.pxd.
