"""What the machine lets a server have: descriptors and pipes.

It must not know what they are for.
"""

from __future__ import annotations

import resource

PIPE_SIZE_MAX = 1 << 30

# Descriptors that are neither sessions nor pipes: listeners, epolls, the loop's
# own, the interpreter's, and what an embedding program holds.
RESERVED_DESCRIPTORS = 64


def default_max_pipes(pipe_size: int) -> int:
    """Half of what the kernel lets one unprivileged user have in all their processes
    (above it every new pipe has two pages), and never more than 64 for anyone."""
    try:
        with open("/proc/sys/fs/pipe-user-pages-soft") as file:
            pages = int(file.read())
    except (OSError, ValueError):
        pages = 0
    half = (pages or 16384) * resource.getpagesize() // 2
    return max(1, min(64, half // min(pipe_size, largest_pipe())))


def largest_pipe() -> int:
    """Octets that the kernel lets a pipe of an unprivileged user have."""
    try:
        with open("/proc/sys/fs/pipe-max-size") as file:
            return int(file.read())
    except (OSError, ValueError):
        return PIPE_SIZE_MAX


def default_max_sessions(max_pipes: int) -> int:
    """As many as there are descriptors for: two a session, two a pipe, a reserve."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20
    return max(1, (limit - RESERVED_DESCRIPTORS - 2 * max_pipes) // 2)
