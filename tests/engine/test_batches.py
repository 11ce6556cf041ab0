# Shows that relaying many short messages with one system call for all is seen by nobody: what
# comes, how it ends, and that it does without wherever the kernel has no io_uring.
#
# Must not know: how many messages make a batch.

from __future__ import annotations

import json

import pytest

ALONE = {
    "word": ["remote: 500"],
    "both": ["client: 500"],
    "as long as is read": ["remote: 20480"],
    "longer": ["remote: 25480"],
    "to one who is slow": ["remote: 20480"],
    "end": ["remote: 500, end"],
    "reset": ["remote: 500, reset"],
    "reset without a word": ["remote: 400, reset"],
    "to one who resets": ["client: 0, reset"],
    "urgent": ["remote: 600"],
}


@pytest.mark.parametrize(
    ("engine", "how", "batched"),
    [
        ("native", "auto", True),
        ("native", "inline", True),
        ("native", "off", False),
        ("native", "denied", False),
        ("python", "auto", False),
    ],
)
def test_all_at_once_is_as_one_by_one(program, engine, how, batched):
    process = program("all_at_once", engine, how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    came, counters = map(json.loads, output.splitlines())
    assert came == ALONE
    assert (counters["batched"] > 0) is batched, counters


@pytest.mark.parametrize("engine", ["native"])
async def test_a_message_alone_is_no_batch(start_engine, engine):
    """With io_uring it would cost more than by itself."""
    rig = start_engine(engine)
    relayed = rig.relay()
    for _ in range(100):
        await relayed.client.send(b"x")
        assert await relayed.remote.read(1) == b"x"
    await rig.over(relayed.client, relayed.remote)
    assert rig.engine.counters()["batched"] == 0
