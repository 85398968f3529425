-- Users, databases and pools. Truth is PostgreSQL; here are only the passwords that the API gave and the pools.

create table user_secret (
    service_id uuid not null references service on delete cascade,
    name text not null,
    secret bytea not null,                     -- sealed by the vault: password and verifier
    primary key (service_id, name)
);

create table pool (
    service_id uuid not null references service on delete cascade,
    name text not null,
    database_name text not null,
    mode text not null check (mode in ('session', 'transaction', 'statement')),
    size integer not null check (size between 1 and 10000),
    username text not null default '',         -- empty: clients log in as themselves
    primary key (service_id, name)
);

-- What the operation asks of the cluster (spec.Task without the sealed verifier), so that a run can be repeated.
alter table operation add task jsonb;

-- Who did what: every mutating call, every revealed password, every change of keys. Never a secret.
create table event (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    organization_id uuid not null references organization on delete cascade,
    key text not null,
    remote text not null,
    command text not null,                     -- operationId
    subject text not null,                     -- what it was about, such as a service or service/user
    result text not null                       -- `accepted`, or the refusal's message
);
create index event_organization on event (organization_id, id);
