-- Nodes that a host has and that are not known here, as after the metadata was restored from an older copy. Nothing deletes
-- them by itself: an operator adopts or forgets each.
create table unknown_node (
    host_id uuid not null references host on delete cascade,
    node_id uuid not null,
    report jsonb not null,                     -- spec.UnknownNode
    port integer not null,                     -- is not given to others
    seen_at timestamptz not null default now(),
    doomed boolean not null default false,     -- forgotten by the operator: its host shall delete it
    primary key (host_id, node_id)
);

-- Hosts seal for it what only they still know of an unknown node.
create table recovery_key (
    id boolean primary key default true check (id),  -- there is one
    public_key text not null,
    private_key bytea not null                 -- sealed by the vault
);

create function host_api.recovery_key() returns text
language sql stable security definer set search_path = public, pg_temp as $$
    select public_key from recovery_key;
$$;

-- The whole list of a host's unknown nodes; `present` are the ids of all nodes that it has.
create function host_api.unknown(nodes jsonb, present jsonb) returns void
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    mine uuid;
begin
    if not (jsonb_typeof(nodes) = 'array' and jsonb_typeof(present) = 'array' and jsonb_array_length(nodes) <= 5000
            and length(nodes::text) < 67108864) then
        raise exception 'unknown nodes must be a list of UnknownNode';
    end if;
    select id into mine from host where login = session_user for update;
    if mine is null then
        return;
    end if;
    delete from unknown_node u
     where u.host_id = mine
       and (not exists (select 1 from jsonb_array_elements_text(present) p where p::uuid = u.node_id)
            or (not u.doomed and not exists (select 1 from jsonb_array_elements(nodes) n
                                              where (n #>> '{spec,node_id}')::uuid = u.node_id)));
    insert into unknown_node (host_id, node_id, report, port)
    select mine, (n #>> '{spec,node_id}')::uuid, n, (n #>> '{spec,port}')::integer
      from jsonb_array_elements(nodes) n
     where not exists (select 1 from node k where k.id = (n #>> '{spec,node_id}')::uuid)
        on conflict (host_id, node_id) do update
       set report = excluded.report, port = excluded.port, seen_at = now();
end $$;

revoke all on all functions in schema host_api from public;
