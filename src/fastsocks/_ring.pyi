# Batches of system calls have no Python names: they are C, in _ring.pxd.
