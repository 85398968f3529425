-- Repositories of services, and operations that go on for long beside others.

create table repository (
    service_id uuid primary key references service on delete cascade,
    kind text not null check (kind in ('directory', 's3')),
    key bytea not null,                        -- sealed by the vault: the passphrase of everything in it
    problem text not null default '',          -- what was last told of it, so that it is told once
    created_at timestamptz not null default now()
);

create unique index operation_one_backup on operation (service_id) where kind = 'backup' and state = 'pending';

-- A job whose operation ended is asked of no host any more, whoever ended it; what runs of it is then ended.
create function withdraw_job() returns trigger language plpgsql as $$
begin
    update node set generation = generation + 1, spec = jsonb_set(spec, '{jobs}',
           (select coalesce(jsonb_agg(job), '[]') from jsonb_array_elements(spec -> 'jobs') job where job ->> 'id' <> new.id::text))
     where service_id = new.service_id
       and spec -> 'jobs' @> jsonb_build_array(jsonb_build_object('id', new.id::text));
    if found then
        perform wake_hosts(new.service_id);
    end if;
    return null;
end $$;
create trigger withdraw_job after update of state on operation
    for each row when (old.state = 'pending' and new.state <> 'pending') execute function withdraw_job();

-- As before (0001), and: what runs for long has a lock of its own, `<service>/<kind>`, so that nothing else waits for it.
create or replace function wake_jobs(of_service uuid) returns void language sql as $$
    with woken as (
        update procrastinate_jobs set scheduled_at = null
         where (lock = of_service::text or lock like of_service::text || '/%') and status = 'todo' and scheduled_at > now()
        returning id
    )
    select pg_notify('procrastinate_any_queue_v1', json_build_object('type', 'job_inserted', 'job_id', id)::text) from woken;
$$;
