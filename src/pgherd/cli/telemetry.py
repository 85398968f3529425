"""`pgherd service logs`, `metrics` and `prometheus`: what a service says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pgherd.cli import screen
from pgherd.cli.client import Api, connect
from pgherd.cli.complete import services
from pgherd.cli.screen import Form

_PAUSE = 1.0  # seconds between looks for new lines
_BARS, _WIDTH = "▁▂▃▄▅▆▇█", 24

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.", autocompletion=services)]


class Order(StrEnum):
    """Which lines come first."""

    asc = "asc"
    desc = "desc"


class Period(StrEnum):
    """How far back metrics go."""

    hour = "hour"
    day = "day"
    week = "week"
    month = "month"
    year = "year"


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines as they come, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Lines at most.")] = 100,
    order: Annotated[
        Order | None, typer.Option(help="asc: the oldest lines that there are; desc: the newest first.")
    ] = None,
    form: Form = None,
) -> None:
    """Show the newest log lines of a service, of PostgreSQL and PgBouncer, in the order in which they came."""
    api = connect()
    asked: dict[str, Any] = {"limit": limit, "sort-order": str(order or Order.desc)}
    answer = api.call("get-dbaas-service-logs", name, body=asked)
    if not follow and screen.as_json():
        screen.print_json(answer)
        return
    lines = answer["logs"] if order is not None else answer["logs"][::-1]
    _print_lines(lines)
    if follow:
        _follow(api, name, answer["offset"] if order is Order.asc else answer["first-log-offset"])


def _follow(api: Api, name: str, offset: str) -> None:
    while True:
        body = {"limit": 500, "sort-order": "asc", "offset": offset}
        answer = api.call("get-dbaas-service-logs", name, body=body)
        offset = answer["offset"]
        _print_lines(answer["logs"])
        if not answer["logs"]:
            time.sleep(_PAUSE)


def _print_lines(lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        if screen.as_json():
            typer.echo(json.dumps(line))
            continue
        first, *more = line["message"].split("\n")
        typer.echo(screen.visible(f"{line['time']} {line['node']} {line['unit']}: {first}"))
        for text in more:
            typer.echo("    " + screen.visible(text.removeprefix("\t")))


def metrics(
    name: Name,
    period: Annotated[Period, typer.Option(help="hour, day, week, month or year.")] = Period.hour,
    form: Form = None,
) -> None:
    """Show how busy a service was: the last value of each metric, the least, the most, and how it went."""
    answer = connect().call("get-dbaas-service-metrics", name, body={"period": str(period)})
    rows = []
    for metric in answer["metrics"].values():
        values = [number for row in metric["data"]["rows"] for number in row[1:] if number is not None]
        if values:
            shown = [_number(value) for value in (values[-1], min(values), max(values))]
            rows.append((metric["hints"]["title"], *shown, sparkline(values)))
    empty = "Nothing has been measured yet; the first values come within half a minute."
    screen.show_rows(answer, ("METRIC", "LAST", "LEAST", "MOST", "COURSE"), rows, empty)


def sparkline(values: Sequence[float]) -> str:
    """The course of some values as a line of bars, from zero to the largest."""
    count, most = len(values), max(values)
    width = min(_WIDTH, count)
    parts = [values[n * count // width : (n + 1) * count // width] for n in range(width)]
    means = [sum(part) / len(part) for part in parts]
    return "".join(_BARS[min(7, int(8 * mean / most)) if most > 0 and mean > 0 else 0] for mean in means)


def _number(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 10_000 or unit == "T":
            break
        value /= 1000
    return f"{value:.2f}".rstrip("0").rstrip(".") + unit


def prometheus(
    name: Name,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the CA's certificate there and name it, as Prometheus of Debian 12 needs it."
        ),
    ] = None,
    form: Form = None,
) -> None:
    """Print a scrape configuration for Prometheus, with the password and the CA in it; leaves an event."""
    api = connect()
    found = api.own("GET", "service", name, "prometheus")
    authority = api.call("get-dbaas-ca-certificate")["certificate"]
    if ca_file is not None:
        ca_file.write_text(authority)
    if screen.as_json():
        screen.print_json({**found, "ca-certificate": authority})
    else:
        typer.echo(scrape_configuration(name, found, authority, ca_file), nl=False)


def scrape_configuration(name: str, found: dict[str, Any], authority: str, ca_file: Path | None) -> str:
    """A whole configuration file of Prometheus for one service."""
    host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
    target = json.dumps(f"{host}:{found['port']}")
    if ca_file is not None:
        trust = f"      ca_file: {json.dumps(str(ca_file.absolute()))}\n"
    else:
        trust = "      ca: |\n" + "".join(f"        {line}\n" for line in authority.strip().splitlines())
    return (
        "scrape_configs:\n"
        f"  - job_name: {json.dumps(f'pgherd-{name}')}\n"
        f"    scheme: {found['scheme']}\n"
        f"    metrics_path: {found['path']}\n"
        "    static_configs:\n"
        f"      - targets: [{target}]\n"
        f"        labels: {{service: {json.dumps(name)}}}\n"
        "    basic_auth:\n"
        f"      username: {found['username']}\n"
        f"      password: {json.dumps(found['password'])}\n"
        "    tls_config:\n"
        f"{trust}"
    )
