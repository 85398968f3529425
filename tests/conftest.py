"""Fixtures that start real servers live in `plugins`; nothing is mocked."""

import pytest

pytest_plugins = ["tests.plugins.instance", "tests.plugins.host", "tests.plugins.objects"]
pytest.register_assert_rewrite("tests.durability.kills")
