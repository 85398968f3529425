"""`pgherd secrets export` and `import`: the key file leaves the machine once, and comes back on another."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pgherd.errors import HostFault, Incorrect
from pgherd.home import Home
from pgherd.instance import effective
from pgherd.instance.accounts import accounts, run_as
from pgherd.instance.processes import supervisor_of
from pgherd.settings import Settings

_LONGEST = 1 << 20  # bytes of an export


def mark_of(home: Home) -> Path:
    """Where the fingerprint of the key file that was exported last is kept."""
    return home.secrets / "exported"


def export(environ: Mapping[str, str], target: str, passphrase: str | None) -> int:
    """Write the keys to the new file `target`, readable by its owner alone, or to standard output when it is `-`.

    `passphrase` is a source, see `read_passphrase`; None: no protection. Raises Incorrect when the file exists.
    """
    from pgherd.store import exported_keys, vault

    home, who = _home(environ), accounts()
    if target != "-":
        _refuse_place(home, Path(target))
    text = run_as(who.control, ["cat", str(home.secrets / "keys.toml")]).stdout
    current = vault.parse_keys(text).current
    content = exported_keys.plain(text)
    if passphrase is not None:
        content = exported_keys.locked(text, read_passphrase(passphrase, twice=True))
    if target == "-":
        sys.stdout.write(content)
        sys.stdout.flush()
    else:
        _write_new(Path(target), content)
    argv = ["exported", vault.fingerprint(text.encode())]
    said = run_as(who.control, [*_program(home), *argv], env=_env(home)).stdout
    print(f"pgherd: exported the keys, current is {current}; keep them away from this machine.{said}", file=sys.stderr)
    return 0


def exported_here(settings: Settings, fingerprint: str) -> int:
    """Note, already under the right user, that the keys of this fingerprint were exported, and leave an event."""
    from pgherd.instance.layout import write_file
    from pgherd.store.vault import Vault, key_file

    write_file(mark_of(Home(settings.root)), fingerprint + "\n", 0o600)
    if not _left_event(settings, Vault(key_file(settings)).current):
        print(" The metadata is not running, so this left no event.", end="")
    return 0


def _left_event(settings: Settings, current: str) -> bool:
    import psycopg

    from pgherd.store.db import Transaction, database_url
    from pgherd.store.events import leave_event

    try:
        with psycopg.connect(database_url(settings), connect_timeout=5, row_factory=psycopg.rows.dict_row) as link:
            return leave_event(Transaction(link), "export-secrets", current)
    except psycopg.Error:
        return False


def bring_back(environ: Mapping[str, str], source: str, passphrase: str | None, *, replace: bool) -> int:
    """Let the exported keys in `source` (`-`: standard input) be this instance's. The instance must be down.

    Raises Incorrect when it has other keys, unless `replace`: they are kept as keys.toml.before-import then.
    """
    from pgherd.store import exported_keys, vault

    home, who = _home(environ), accounts()
    if supervisor_of(home, who).scanner_alive():
        raise Incorrect("The instance is running with its own keys; stop it first: make down.")
    try:
        with open(0 if source == "-" else source, "rb", closefd=source != "-") as file:
            content = file.read(_LONGEST).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Incorrect(f"Cannot read the exported keys: {error}.") from None
    secret = ""
    if exported_keys.is_locked(content):
        secret = read_passphrase(passphrase or "-", twice=False)
    text = exported_keys.opened(content, secret)
    current = vault.parse_keys(text).current
    path = home.secrets / "keys.toml"
    own = run_as(who.control, ["cat", str(path)]).stdout if path.exists() else ""
    if own and not replace and vault.parse_keys(own) != vault.parse_keys(text):
        raise Incorrect(
            "This instance has keys of its own, without which what its metadata holds cannot be opened."
            " If that is to be given up, say --replace; the old keys stay beside the new ones."
        )
    run_as(who.control, [*_program(home), "import-keys"], env=_env(home), input=text)
    print(f"pgherd: this instance has the exported keys now, current is {current}.", file=sys.stderr)
    return 0


def import_here(settings: Settings, text: str) -> int:
    """The same, already under the right user; other keys that were there are kept beside."""
    from pgherd.instance.layout import write_file
    from pgherd.store import vault

    path, wanted = vault.key_file(settings), vault.parse_keys(text)
    if path.exists() and path.read_text() != wanted.text:
        write_file(path.with_name("keys.toml.before-import"), path.read_text(), 0o600)
    vault.write_keys(path, wanted)
    write_file(mark_of(Home(settings.root)), vault.fingerprint(wanted.text.encode()) + "\n", 0o600)
    return 0


def read_passphrase(source: str, *, twice: bool) -> str:
    """The passphrase that a source names: `-` (asked at a terminal, else a line of standard input) or `@FILE`."""
    if source == "-" and sys.stdin.isatty():
        given = getpass.getpass("Passphrase: ")
        if twice and getpass.getpass("Again: ") != given:
            raise Incorrect("The two passphrases differ.")
        return given
    if source == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if not source.startswith("@"):
        raise Incorrect(
            "passphrase: it may not stand on the command line, where others can see it; give - to be asked, or @FILE."
        )
    try:
        with open(source[1:], encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Incorrect(f"Cannot read the passphrase: {error}.") from None


def _home(environ: Mapping[str, str]) -> Home:
    home = Home(effective.running(environ).root)
    if not home.current.exists() or not home.secrets.exists():
        raise Incorrect("This instance was never started: run `make up`, and `make down` to stop it again.")
    return home


def _refuse_place(home: Home, target: Path) -> None:
    if not target.parent.is_dir():
        raise Incorrect(f"There is no directory {target.parent}.")
    if os.path.lexists(target):
        raise Incorrect(f"{target} exists already; keys are never written over anything. Name a new file.")
    if home.root.resolve() in target.resolve().parents:
        raise Incorrect("The exported keys must not lie in the instance's own directory: they would be lost with it.")


def _write_new(target: Path, content: str) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        raise HostFault("The keys cannot be written.", detail=str(error)) from None


def _program(home: Home) -> list[str]:
    return [str(home.current / "bin/pgherd")]


def _env(home: Home) -> dict[str, str]:
    return {"PGHERD_HOME": str(home.root), "PYTHONSAFEPATH": "1"}
