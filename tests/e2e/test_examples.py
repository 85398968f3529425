"""What the README and `examples/` tell people to type, typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.plugins.instance import CHECKOUT, Instance

README = (CHECKOUT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(instance: Instance) -> dict[str, str]:
    """A shell after `eval "$(pgherd env)"`, with pgherd in its path; of an organization that has no service yet."""
    name = f"o-{uuid.uuid4().hex[:10]}"
    assert instance.call("POST", "/pgherd/v1/organization", {"name": name}).status_code == 200
    key = instance.call("POST", "/pgherd/v1/api-key", {"name": "newcomer", "organization": name}).json()
    own = {"EXOSCALE_API_KEY": key["key"], "EXOSCALE_API_SECRET": key["secret"]}
    return instance.env | instance.exports | own | {"PATH": f"{instance.program.parent}:{os.environ['PATH']}"}


def test_the_first_session(environment: dict[str, str]) -> None:
    """Every command ends well and says what the README shows; of a table's cells only the first are compared."""
    (session,) = [block for block in blocks("console") if "service create" in block]
    steps = re.findall(r"^\$ (pgherd .*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(steps) >= 5
    for command, shown in steps:
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        progress = re.compile(r"^(Creating|Deleting) demo: .*\n", re.MULTILINE)  # what a pipe gets while it waits
        said = (done.stdout + progress.sub("", done.stderr)).splitlines()
        firsts = [[line.split("  ")[0] for line in lines] for lines in (said, shown.splitlines())]
        assert firsts[0] == firsts[1], command


@pytest.mark.parametrize("script", ["README", "examples/python/first_service.py"])
def test_python(environment: dict[str, str], tmp_path: Path, script: str) -> None:
    (of_readme,) = [block for block in blocks("python") if "exoscale" in block]
    text = of_readme if script == "README" else (CHECKOUT / script).read_text()
    done = subprocess.run(
        [sys.executable, "-c", text], env=environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "avnadmin" in done.stdout or "PostgreSQL" in done.stdout


@pytest.mark.skipif(shutil.which("terraform") is None, reason="there is no terraform here")
def test_terraform_is_well_formed() -> None:
    argv = ["terraform", "fmt", "-check", "-diff", str(CHECKOUT / "examples/terraform")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
