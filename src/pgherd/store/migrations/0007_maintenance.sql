-- What waits for a service's maintenance, and since when: a deadline counts from there. What it is comes from the hosts.
create table pending_update (
    service_id uuid not null references service on delete cascade,
    kind text not null check (kind in ('postgresql', 'pgbouncer', 'parameters')),
    since timestamptz not null,
    primary key (service_id, kind)
);

alter table service add maintained_for timestamptz;    -- begin of the last window in which maintenance was started
