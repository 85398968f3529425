"""Fixtures that start real servers live in `plugins`; nothing is mocked."""

pytest_plugins = ["tests.plugins.host", "tests.plugins.instance", "tests.plugins.objects"]
