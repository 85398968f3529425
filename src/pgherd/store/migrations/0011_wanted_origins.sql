-- As before (0001), and: whether the node has been in force once, so that its host never makes it an empty cluster again;
-- where its data is to come from only as long as an operation waits for it; and the forgotten nodes: their hosts delete them.
create or replace function host_api.specs() returns setof jsonb
language sql stable security definer set search_path = public, pg_temp as $$
    select n.spec || jsonb_build_object('generation', n.generation, 'established', s.settled is not null)
           || case when exists (select 1 from operation o
                                 where o.id::text = n.spec -> 'origin' ->> 'id' and o.state = 'pending')
                   then '{}'::jsonb else '{"origin": null}' end
      from node n join host h on h.id = n.host_id join service s on s.id = n.service_id
     where h.login = session_user and n.spec is not null
    union all
    select u.report -> 'spec' || jsonb_build_object('desired', 'absent', 'task', null, 'jobs', '[]'::jsonb,
           'generation', (u.report #>> '{spec,generation}')::bigint + 1)
      from unknown_node u join host h on h.id = u.host_id
     where h.login = session_user and u.doomed and not exists (select 1 from node k where k.id = u.node_id);
$$;
