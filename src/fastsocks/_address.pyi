# Socket addresses have no Python names: they are C, in _address.pxd.
