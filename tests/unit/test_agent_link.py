"""What the agent tells as JSON: what services say in it cannot make the metadata refuse it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pgherd.agent.link import _json


@given(st.lists(st.text("\0\\u0a\ufffd", max_size=12)))
def test_only_nul_is_replaced(texts: list[str]) -> None:
    told = _json(texts)
    assert "\0" not in told
    assert json.loads(told) == [text.replace("\0", "\ufffd") for text in texts]
