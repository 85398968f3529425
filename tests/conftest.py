"""Fixtures that start real servers live in `plugins`; nothing is mocked."""

pytest_plugins = ["tests.plugins.instance", "tests.plugins.host", "tests.plugins.objects"]
