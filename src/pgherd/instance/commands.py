"""The operators' commands by name. Importing this module is cheap: each command imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from pgherd.errors import Incorrect, PgherdError


class Command(NamedTuple):
    """One line of help, and what runs: takes the words after the command's name, gives the exit code."""

    help: str
    run: Callable[[list[str]], int]


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"pgherd {name}", description=description)


def _say(text: str) -> None:
    print(f"pgherd: {text}", file=sys.stderr)


def _up(argv: list[str]) -> int:
    parser = _parser("up", COMMANDS["up"].help)
    parser.add_argument("--insecure-http", action="store_true", help="allow plain HTTP on an address others can reach")
    parser.add_argument("--as-before", action="store_true", help="with the settings of the last start (at boot)")
    chosen = parser.parse_args(argv)
    from pgherd.instance import effective, lifecycle

    environ = dict(os.environ)
    if chosen.as_before:
        environ = {**effective.remembered(effective.home_of(environ)), **environ}
    if chosen.insecure_http:
        environ["PGHERD_INSECURE_HTTP"] = "1"
    settings = lifecycle.up(environ, _say)
    print(lifecycle.summary(settings, lifecycle.program_name()), end="")
    return 0


def _down(argv: list[str]) -> int:
    _parser("down", COMMANDS["down"].help).parse_args(argv)
    from pgherd.instance import lifecycle

    settings = lifecycle.down(os.environ, _say)
    if settings is not None:
        print(f"pgherd is down; the data stays in {settings.root}")
    return 0


def _restart(argv: list[str]) -> int:
    _parser("restart", COMMANDS["restart"].help).parse_args(argv)
    from pgherd.instance import lifecycle

    lifecycle.restart(os.environ, _say)
    print("pgherd's own processes are started anew; the services went on")
    return 0


def _settings(argv: list[str]) -> int:
    parser = _parser("settings", COMMANDS["settings"].help)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    chosen = parser.parse_args(argv)
    from pgherd.instance import settings_report

    print(settings_report.render(os.environ, as_json=chosen.output == "json"), end="")
    return 0


def _env(argv: list[str]) -> int:
    parser = _parser("env", COMMANDS["env"].help)
    parser.add_argument(
        "--terraform", action="store_true", help="those for Terraform's provider, while `pgherd terraform-front` runs"
    )
    chosen = parser.parse_args(argv)
    from pgherd.instance import credentials, effective

    path = effective.home_of(os.environ).credentials
    print(credentials.front_lines(path, os.environ) if chosen.terraform else credentials.export_lines(path), end="")
    return 0


def _doctor(argv: list[str]) -> int:
    parser = _parser("doctor", COMMANDS["doctor"].help)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    chosen = parser.parse_args(argv)
    from pgherd.instance import doctor

    return doctor.run(os.environ, as_json=chosen.output == "json")


def _secrets(argv: list[str]) -> int:
    parser = _parser("secrets", COMMANDS["secrets"].help)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("rotate", help="a new key, and every stored secret under it")
    out = actions.add_parser("export", help="write the keys to a new file outside of the instance, once")
    out.add_argument("file", help="a file that does not exist yet, or - for standard output")
    back = actions.add_parser("import", help="let exported keys be this instance's, to restore its metadata")
    back.add_argument("file", help="what `export` wrote, or - for standard input")
    back.add_argument("--replace", action="store_true", help="give up the keys that this instance has")
    for action in (out, back):
        action.add_argument("--passphrase", metavar="SOURCE", help="- to be asked, or @FILE with it in the first line")
    chosen = parser.parse_args(argv)
    from pgherd.instance import control, keys

    if chosen.action == "export":
        return keys.export(os.environ, chosen.file, chosen.passphrase)
    if chosen.action == "import":
        return keys.bring_back(os.environ, chosen.file, chosen.passphrase, replace=chosen.replace)
    return control.rotate(os.environ)


def _platform(argv: list[str]) -> int:
    parser = _parser("platform", COMMANDS["platform"].help)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("backup", help="back the metadata up now, beside its daily backup")
    shown = actions.add_parser("status", help="the backups, and to which times the metadata can be restored")
    shown.add_argument("-o", "--output", choices=("table", "json"), default="table")
    back = actions.add_parser("restore", help="put the metadata back to a time; services run on")
    back.add_argument("--to", metavar="TIME", default="", help="such as 2026-11-24T15:00:00Z; else the newest there is")
    back.add_argument("--yes", "-y", action="store_true", help="do not ask")
    as_json = argv[:2] == ["-o", "json"]  # `pgherd -o json platform status`
    chosen = parser.parse_args(argv[2:] if as_json else argv)
    from pgherd.instance import platform

    if chosen.action == "backup":
        return platform.backup(os.environ)
    if chosen.action == "status":
        return platform.status(os.environ, as_json=as_json or chosen.output == "json")
    _confirm(
        chosen.yes, "Put the metadata back? Changes after that time are lost; nodes made since are kept as unknown."
    )
    return platform.restore(os.environ, chosen.to)


def _confirm(confirmed: bool, question: str) -> None:
    if confirmed:
        return
    if not sys.stdin.isatty():
        raise Incorrect("This needs a yes, and there is nobody to ask; say --yes.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Incorrect("Nothing was done.")


def _boot_unit(argv: list[str]) -> int:
    parser = _parser("boot-unit", COMMANDS["boot-unit"].help)
    parser.add_argument("action", choices=("install", "remove", "show"))
    chosen = parser.parse_args(argv)
    from pgherd.instance import boot_unit

    return boot_unit.run(chosen.action, os.environ, _say)


COMMANDS: dict[str, Command] = {
    "up": Command("Start this machine's instance and every service; safe to repeat.", _up),
    "down": Command("Stop the instance and every service; the data stays.", _down),
    "restart": Command("Restart pgherd's own processes; services and connections go on.", _restart),
    "doctor": Command("Check this machine and the instance, and say what to do.", _doctor),
    "settings": Command("List every setting: value, default, meaning and where it was set.", _settings),
    "env": Command('Print the variables that clients need: eval "$(pgherd env)".', _env),
    "secrets": Command("Rotate, export or import the keys that protect stored secrets.", _secrets),
    "platform": Command("Back up and restore the metadata of this instance.", _platform),
    "boot-unit": Command("Start the instance when this machine boots.", _boot_unit),
}


def run(name: str, argv: list[str]) -> int:
    """Carry a command out; an error is told on stderr and gives exit code 1."""
    try:
        return COMMANDS[name].run(argv)
    except PgherdError as error:
        _say(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 1
