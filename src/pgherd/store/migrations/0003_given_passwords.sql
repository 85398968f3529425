-- A password that an operation gives is the user's only once the cluster has it: until then it lies with the operation.

alter table operation add secret bytea;        -- sealed by the vault: password and verifier; gone when the operation ends

-- As before (0001), and: only what changes the wish settles it, and a task that ended is asked of no host any more.
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
    if op.kind in ('access', 'pools', 'delete') then
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
