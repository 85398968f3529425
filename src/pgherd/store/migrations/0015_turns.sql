-- Changes of a service come into force in the order in which they were accepted, each with those before it only.

alter table operation add number bigint generated always as identity;    -- of one service: the order of the wishes

-- What the service is wished to be in an operation's turn: without what updates that were accepted later ask for.
create function wish_in_turn(of_service uuid, turn bigint) returns jsonb language sql stable as $$
    select coalesce((select o.task -> 'before' from operation o
                      where o.service_id = of_service and o.state = 'pending' and o.kind = 'update' and o.number > turn
                        and jsonb_typeof(o.task -> 'before') = 'object'
                      order by o.number limit 1),
                    (select wish from service where id = of_service));
$$;

-- As before (0004), and: what comes into force is what was wished for in the operation's turn.
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
        update service set phase = 'running', notice = '', settled = wish_in_turn(id, op.number)
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
