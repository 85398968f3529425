-- Operations whose end says nothing about the service's wish and phase: they change neither, or do so themselves.
create function quiet_kinds() returns text[] language sql immutable as $$
    select array['access', 'pools', 'delete', 'backup', 'verify', 'power']
$$;

-- As before (0003), with the quiet kinds named in one place.
create or replace function end_operation(which uuid, run integer, new_state text, why text, words text) returns boolean
language plpgsql as $$
declare
    op operation;
    withdrawn boolean;
begin
    -- service before operation: the order in which every transaction locks
    perform 1 from service where id = (select service_id from operation where id = which) for update;
    update operation set state = new_state, reason = why, message = words, ended_at = now(), secret = null
     where id = which and state = 'pending' and (run is null or attempt = run)
    returning * into op;
    if not found then
        return false;
    end if;
    update node set spec = jsonb_set(spec, '{task}', 'null'), generation = generation + 1
     where service_id = op.service_id and spec -> 'task' ->> 'id' = which::text;
    withdrawn := found;
    if op.kind = any (quiet_kinds()) then
        null;
    elsif new_state = 'success' then
        update service set phase = 'running', notice = '', settled = wish
         where id = op.service_id and deleted_at is null;
    elsif op.kind = 'create' then
        update service set phase = 'poweroff', notice = words where id = op.service_id and deleted_at is null;
        update node set spec = jsonb_set(spec, '{desired}', '"stopped"'), generation = generation + 1
         where service_id = op.service_id and spec is not null and spec ->> 'desired' = 'running';
        withdrawn := true;
    else
        update service set phase = 'running', notice = words where id = op.service_id and deleted_at is null;
    end if;
    if withdrawn then
        perform wake_hosts(op.service_id);
    end if;
    perform pg_notify('pgherd_operation', which::text);
    return true;
end $$;
