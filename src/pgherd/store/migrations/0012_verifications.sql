-- What came of restoring backups to prove them; for each backup the last time.
create table verification (
    service_id uuid not null references service on delete cascade,
    backup text not null,                      -- empty: it could not be carried out
    at timestamptz not null default now(),
    state text not null check (state in ('sound', 'damaged', 'impossible')),
    report jsonb not null,                     -- spec.Verification
    primary key (service_id, backup)
);
create index verification_at on verification (service_id, at);

create unique index operation_one_verify on operation (service_id) where kind = 'verify' and state = 'pending';
