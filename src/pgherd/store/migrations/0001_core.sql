-- The metadata of one zone. Rules that must hold are constraints here, not checks in one process.

create table organization (
    id uuid primary key,
    name text not null unique check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
    ca_certificate text not null,
    ca_key bytea not null,                     -- sealed by the vault
    created_at timestamptz not null default now()
);

create table api_key (
    key text primary key,
    organization_id uuid not null references organization on delete cascade,
    name text not null,
    role text not null check (role in ('operator', 'admin', 'read-only')),
    secret bytea not null,                     -- sealed by the vault
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

create table host (
    id uuid primary key default gen_random_uuid(),
    name text not null unique,
    login text not null unique,                -- the role that the host's agent logs in as
    public_key text,                           -- secrets in specs are sealed for it
    facts jsonb,                               -- HostFacts
    seen_at timestamptz
);

create table service (
    id uuid primary key,
    organization_id uuid not null references organization on delete cascade,
    name text not null,
    wish jsonb not null,                       -- model.service.Wish
    settled jsonb,                             -- the wish that was last in force; a failed update goes back to it
    phase text not null check (phase in ('rebuilding', 'running', 'poweroff')),
    notice text not null default '',           -- why the last operation failed
    first_port integer not null,
    memory_bytes bigint not null,              -- of all nodes of the plan; counted against the limits
    secrets bytea not null,                    -- sealed by the vault: model.service.Secrets
    certificate text not null default '',      -- PEM; the key is among the secrets
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,                    -- from here on the name is free
    cleared_at timestamptz                     -- nothing of it is left on any host
);
create unique index service_name on service (organization_id, name) where deleted_at is null;
create index service_uncleared on service (deleted_at) where cleared_at is null;

-- A service takes four ports: PostgreSQL, PgBouncer, replica, exporter. They rest before they are used again.
create table port_block (
    first_port integer primary key check (first_port % 4 = 0 and first_port < 32768),
    service_id uuid not null,
    released_at timestamptz
);

create table node (
    id uuid primary key,
    service_id uuid not null references service on delete cascade,
    host_id uuid not null references host,
    name text not null,
    spec jsonb,                                -- NodeSpec without its generation; null before the first and after the last
    generation bigint not null default 0,      -- grows with every change of the spec
    restart integer not null default 0,        -- restarts asked for
    restart_generation bigint not null default 0,  -- generation of the spec that asked for the last one
    sealed jsonb,                              -- secrets as sealed for the host, so that a spec does not change by itself
    status jsonb,                              -- NodeStatus as last observed
    observed_at timestamptz
);
create index node_service on node (service_id);
create index node_host on node (host_id);

create table operation (
    id uuid primary key,
    organization_id uuid not null references organization on delete cascade,
    service_id uuid not null references service on delete cascade,
    kind text not null,
    state text not null default 'pending' check (state in ('pending', 'success', 'failure', 'timeout')),
    reason text check (reason in ('busy', 'conflict', 'fault', 'forbidden', 'incorrect', 'interrupted',
                                  'not-found', 'partial', 'unavailable', 'unknown', 'unsupported')),
    message text not null default '',
    step text not null default '',
    verdict text not null default '',          -- set when the run undoes the operation: how it is to fail
    attempt integer not null default 0,        -- every run draws a new one; its writes are conditional on it
    faults integer not null default 0,         -- runs that ended in an error of ours
    deadline timestamptz not null,
    request_key text,                          -- with the signature: the same request again gets this operation
    request_signature text,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    check ((state in ('failure', 'timeout')) = (reason is not null)),
    check ((state = 'pending') = (ended_at is null))
);
create unique index operation_request on operation (request_key, request_signature);
create index operation_service on operation (service_id);
create index operation_pending on operation (deadline) where state = 'pending';

-- Which worker of the queue holds which slot; the slot's owner also holds a session advisory lock.
create table worker_slot (
    slot integer primary key,
    worker_id bigint not null
);

-- End an operation: exactly once, whoever comes first. `run` is the attempt that ends it, null for the clock and for
-- a delete that overtakes it. A create that did not succeed leaves its service in poweroff with the reason.
create function end_operation(which uuid, run integer, new_state text, why text, words text) returns boolean
language plpgsql as $$
declare
    op operation;
begin
    -- service before operation: the order in which every transaction locks
    perform 1 from service where id = (select service_id from operation where id = which) for update;
    update operation set state = new_state, reason = why, message = words, ended_at = now()
     where id = which and state = 'pending' and (run is null or attempt = run)
    returning * into op;
    if not found then
        return false;
    end if;
    if new_state = 'success' then
        update service set phase = 'running', notice = '', settled = wish
         where id = op.service_id and op.kind <> 'delete' and deleted_at is null;
    elsif op.kind = 'create' then
        update service set phase = 'poweroff', notice = words where id = op.service_id and deleted_at is null;
        update node set spec = jsonb_set(spec, '{desired}', '"stopped"'), generation = generation + 1
         where service_id = op.service_id and spec is not null and spec ->> 'desired' = 'running';
        -- changes that wait for the create must not start what was given up
        perform end_operation(id, null, 'failure', 'interrupted', 'The service was not created.') from operation
          where service_id = op.service_id and state = 'pending' and kind <> 'delete';
        perform wake_hosts(op.service_id);
    elsif op.kind <> 'delete' then
        update service set phase = 'running', notice = words
         where id = op.service_id and deleted_at is null and settled is not null;
    end if;
    perform pg_notify('pgherd_operation', which::text);
    return true;
end $$;

create function wake_hosts(of_service uuid) returns void language sql as $$
    select pg_notify('pgherd_host', h.name)
      from (select distinct host_id from node where service_id = of_service) n join host h on h.id = n.host_id;
$$;

-- Put a job of the service that waits for a later time to now.
create function wake_jobs(of_service uuid) returns void language sql as $$
    with woken as (
        update procrastinate_jobs set scheduled_at = null
         where lock = of_service::text and status = 'todo' and scheduled_at > now()
        returning id
    )
    select pg_notify('procrastinate_any_queue_v1', json_build_object('type', 'job_inserted', 'job_id', id)::text) from woken;
$$;

-- The hosts' whole access: each agent logs in as its host's role and may call these three.
create schema host_api;

create function host_api.register(public_key text, facts jsonb) returns void
language sql security definer set search_path = public, pg_temp as $$
    update host set public_key = $1, facts = $2, seen_at = now() where login = session_user;
$$;

create function host_api.specs() returns setof jsonb
language sql stable security definer set search_path = public, pg_temp as $$
    select n.spec || jsonb_build_object('generation', n.generation)
      from node n join host h on h.id = n.host_id
     where h.login = session_user and n.spec is not null;
$$;

create function host_api.report(report jsonb) returns void
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    mine node;
begin
    if not (jsonb_typeof(report -> 'generation') = 'number' and jsonb_typeof(report -> 'restart') = 'number'
            and jsonb_typeof(report -> 'databases') = 'array' and jsonb_typeof(report -> 'users') = 'array'
            and jsonb_typeof(report -> 'pending_restart') = 'array' and length(report::text) < 1048576) then
        raise exception 'a status must have the form of NodeStatus';
    end if;
    update host set seen_at = now() where login = session_user and seen_at < now() - interval '5 seconds';
    select n.* into mine from node n join host h on h.id = n.host_id
     where n.id = (report ->> 'node_id')::uuid and h.login = session_user
       for update of n;
    if not found or coalesce((mine.status ->> 'generation')::bigint, 0) > (report ->> 'generation')::bigint then
        return;
    end if;
    -- metadata that was restored from an older copy goes on above what the host has seen
    update node set status = report, observed_at = now(),
           generation = case when (report ->> 'generation')::bigint > generation
                             then (report ->> 'generation')::bigint + 1 else generation end
     where id = mine.id;
    if mine.status is null
       or mine.status - 'observed_at' - 'disk_used' is distinct from report - 'observed_at' - 'disk_used' then
        perform pg_notify('pgherd_status', mine.service_id::text);
        perform wake_jobs(mine.service_id);
    end if;
end $$;

revoke all on all functions in schema host_api from public;
