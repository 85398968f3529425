"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or return at once.")]
Timeout = Annotated[float | None, typer.Option(min=0.0, help="Seconds to wait at most.")]

AdminUsername = Annotated[str | None, typer.Option(help="Name of the admin user.", show_default="avnadmin")]
AdminPassword = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Where the admin's password is: - (asked, or from standard input), @FILE or env:NAME.",
        show_default="a random one",
    ),
]
IpFilter = Annotated[
    list[str] | None, typer.Option(metavar="CIDR", help="Network that may connect; repeat it for several.")
]
ClearIpFilter = Annotated[bool, typer.Option("--clear-ip-filter", help="Let nobody from outside connect.")]
Protection = Annotated[
    bool | None, typer.Option("--termination-protection/--no-termination-protection", help="Refuse to delete it.")
]
MaintenanceDow = Annotated[
    str | None, typer.Option(metavar="DAY", help="Day of maintenance: sunday and so on, or never.")
]
MaintenanceTime = Annotated[str | None, typer.Option(metavar="HH:MM[:SS]", help="Time of maintenance, UTC.")]
BackupHour = Annotated[int | None, typer.Option(min=0, max=23, help="Hour of the daily backup, UTC.")]
BackupMinute = Annotated[int | None, typer.Option(min=0, max=59, help="Minute of the daily backup.")]
WorkMem = Annotated[int | None, typer.Option(min=1, max=1024, help="Memory of one sort or hash, in MB.")]
SharedBuffers = Annotated[
    int | None, typer.Option(min=20, max=60, help="Share of the plan's memory for shared buffers, in percent.")
]
PgSetting = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="PostgreSQL setting, also GROUP.KEY=VALUE; repeat it for several."),
]
PgbouncerSetting = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="PgBouncer setting; repeat it for several."),
]
PgauditSetting = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Setting of the audit log, which feature_enabled=on begins."),
]
PglookoutSetting = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Setting of the failover between nodes.")
]
TimescaledbSetting = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Setting of TimescaleDB, with --variant timescale.")
]
Variant = Annotated[str | None, typer.Option(help="aiven, or timescale for TimescaleDB.", show_default="aiven")]
Replication = Annotated[
    str | None,
    typer.Option(
        "--synchronous-replication",
        help="off, or quorum: a commit waits for another node.",
        show_default="off",
    ),
]
