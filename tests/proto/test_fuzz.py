# A million hostile conversations, datagrams and ident answers, the same in every run; what
# must hold of each is said in fuzz/machines.py, and so is how to see one again.

from __future__ import annotations

import pytest

from fuzz import machines


@pytest.mark.timeout(600)
def test_a_million_hostile_cases() -> None:
    trouble = machines.run()
    assert trouble is None, f"{trouble}\nagain: python -m fuzz.machines --only CASE"
