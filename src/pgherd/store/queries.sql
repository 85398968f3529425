-- Every statement of the control plane, by name. `-- name --` starts one.

-- organization_by_name --
select id, name, ca_certificate, ca_key, created_at from organization where name = %(name)s for key share;

-- organization_by_id --
select id, name, ca_certificate, ca_key, created_at from organization where id = %(id)s;

-- lock_organization --
select id, name, ca_certificate, ca_key, created_at from organization where id = %(id)s for no key update;

-- organizations --
select o.id, o.name, o.created_at, (select count(*) from service s where s.organization_id = o.id and s.deleted_at is null) as services
  from organization o order by o.name;

-- insert_organization --
insert into organization (id, name, ca_certificate, ca_key) values (%(id)s, %(name)s, %(ca_certificate)s, %(ca_key)s)
on conflict (name) do nothing returning id;

-- delete_organization --
delete from organization o
 where o.id = %(id)s
   and not exists (select 1 from service s where s.organization_id = o.id and s.cleared_at is null)
returning o.id;

-- ca_certificate --
select ca_certificate from organization where id = %(id)s;

-- key --
select k.key, k.secret, k.organization_id, k.role, o.name as organization
  from api_key k join organization o on o.id = k.organization_id
 where k.key = %(key)s and k.revoked_at is null;

-- keys --
select k.key, k.name, k.role, k.created_at, k.revoked_at, o.name as organization
  from api_key k join organization o on o.id = k.organization_id
 where (%(organization_id)s::uuid is null or k.organization_id = %(organization_id)s)
 order by k.created_at;

-- insert_key --
insert into api_key (key, organization_id, name, role, secret)
values (%(key)s, %(organization_id)s, %(name)s, %(role)s, %(secret)s);

-- revoke_key --
update api_key set revoked_at = now()
 where key = %(key)s and revoked_at is null and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s)
returning role;

-- notify_keys --
select pg_notify('pgherd_keys', '');

-- hosts --
select id, name, login, public_key, facts, seen_at,
       (select count(distinct n.service_id) from node n join service s on s.id = n.service_id
         where n.host_id = host.id and s.cleared_at is null and s.kept_until is null) as services,
       (select coalesce(sum(s.memory_bytes), 0)::bigint from service s
         where s.cleared_at is null and s.kept_until is null and exists (select 1 from node n where n.service_id = s.id and n.host_id = host.id)) as memory_promised
  from host order by name;

-- recovery_key --
select public_key, private_key from recovery_key;

-- insert_recovery_key --
insert into recovery_key (public_key, private_key) values (%(public_key)s, %(private_key)s) on conflict do nothing;

-- unknown_nodes --
select h.name as host, u.node_id as id, u.report, u.seen_at, u.doomed
  from unknown_node u join host h on h.id = u.host_id order by h.name, u.report #>> '{spec,node_name}', u.node_id;

-- unknown_node --
select u.host_id, u.node_id, u.report
  from unknown_node u join host h on h.id = u.host_id
 where h.name = %(host)s and u.node_id = %(node)s and not u.doomed for update of u;

-- doom_unknown_node --
update unknown_node u set doomed = true from host h
 where h.id = u.host_id and h.name = %(host)s and u.node_id = %(node)s
returning pg_notify('pgherd_host', h.name);

-- forget_unknown_node --
delete from unknown_node where host_id = %(host_id)s and node_id = %(node)s;

-- port_block_of_others --
select service_id from port_block where first_port = %(first_port)s and released_at is null and service_id <> %(service_id)s;

-- insert_adopted_node --
insert into node (id, service_id, host_id, name, generation, restart)
values (%(id)s, %(service_id)s, %(host_id)s, %(name)s, %(generation)s, %(restart)s);

-- settle --
update service set settled = wish, certificate = %(certificate)s where id = %(id)s;

-- lock_hosts --
select 1 from host order by name for no key update;

-- versions --
select coalesce(jsonb_agg(facts -> 'versions'), '[]') as versions from host where facts is not null;

-- insert_host --
insert into host (name, login) values (%(name)s, %(login)s) on conflict (name) do update set login = excluded.login;

-- organization_use --
select count(*) as services, coalesce(sum(memory_bytes), 0)::bigint as memory_bytes
  from service where organization_id = %(id)s and deleted_at is null;

-- free_port_block --
select p as first_port
  from generate_series(%(first)s::integer, %(last)s::integer - 3, 4) p
 where not exists (select 1 from port_block b where b.first_port = p
                    and (b.released_at is null or b.released_at > now() - make_interval(secs => %(rest)s)))
   and not exists (select 1 from host h, jsonb_array_elements_text(h.facts -> 'listeners') l
                    where l::integer between p and p + 3)
   and not exists (select 1 from unknown_node u where u.port between p and p + 3)
 order by random() limit 1;

-- free_port_blocks --
select count(*) as free
  from generate_series(%(first)s::integer, %(last)s::integer - 3, 4) p
 where not exists (select 1 from port_block b where b.first_port = p
                    and (b.released_at is null or b.released_at > now() - make_interval(secs => %(rest)s)));

-- take_port_block --
insert into port_block (first_port, service_id) values (%(first_port)s, %(service_id)s)
on conflict (first_port) do update set service_id = excluded.service_id, released_at = null;

-- release_port_block --
update port_block set released_at = now() where service_id = %(service_id)s and released_at is null;

-- insert_service --
insert into service (id, organization_id, name, wish, phase, first_port, memory_bytes, secrets)
values (%(id)s, %(organization_id)s, %(name)s, %(wish)s, 'rebuilding', %(first_port)s, %(memory_bytes)s, %(secrets)s)
on conflict (organization_id, name) where deleted_at is null do nothing
returning id;

-- set_origin --
update service set origin = %(origin)s where id = %(id)s;

-- branches --
select at, timeline, left_timeline, lost from branch where service_id = %(service_id)s order by at;

-- untold_losses --
update branch b set told = true from service s
 where s.id = b.service_id and s.deleted_at is null and b.lost <> '' and not b.told
returning s.organization_id, s.name, b.lost;

-- pending_restore --
select id from operation where service_id = %(service_id)s and kind = 'restore' and state = 'pending' limit 1;

-- lock_kept_service --
select id, organization_id, name, wish, memory_bytes from service
 where organization_id = %(organization_id)s and name = %(name)s and deleted_at is not null and cleared_at is null
   and kept_until > now()
 order by deleted_at desc limit 1 for update;

-- revive_service --
update service set deleted_at = null, kept_until = null, stopped_at = null, phase = 'rebuilding', notice = '', first_port = %(first_port)s,
       updated_at = now() where id = %(id)s;

-- kept_services --
select name, deleted_at, kept_until from service
 where organization_id = %(organization_id)s and deleted_at is not null and cleared_at is null and kept_until > now()
 order by deleted_at desc;

-- keep_service --
update service set kept_until = now() + make_interval(secs => %(seconds)s) where id = %(id)s;

-- want_kept --
update node set spec = jsonb_set(spec, '{desired}', '"kept"'), generation = generation + 1
 where service_id = %(service_id)s and spec is not null and spec ->> 'desired' <> 'absent';

-- kept_too_long --
update service set kept_until = null where cleared_at is null and deleted_at is not null and kept_until <= now() returning id;

-- copy_pools --
insert into pool (service_id, name, database_name, mode, size, username)
select %(service_id)s, name, database_name, mode, size, username from pool where service_id = %(source)s;

-- copy_secrets --
insert into user_secret (service_id, name, secret)
select %(service_id)s, name, secret from user_secret where service_id = %(source)s and name <> %(admin)s;

-- secret_of_user --
select secret from user_secret where service_id = %(service_id)s and name = %(name)s;

-- insert_node --
insert into node (id, service_id, host_id, name) values (%(id)s, %(service_id)s, %(host_id)s, %(name)s);

-- lock_service --
select id, organization_id, name, wish, settled, phase, notice, first_port, memory_bytes, secrets, certificate, origin, kept_until,
       created_at, updated_at, deleted_at, stopped_at
  from service where organization_id = %(organization_id)s and name = %(name)s and deleted_at is null for update;

-- service_by_id --
select id, organization_id, name, wish, settled, phase, notice, first_port, memory_bytes, secrets, certificate, origin, kept_until,
       created_at, updated_at, deleted_at, stopped_at
  from service where id = %(id)s;

-- lock_service_by_id --
select id, organization_id, name, wish, settled, phase, notice, first_port, memory_bytes, secrets, certificate, origin, kept_until,
       created_at, updated_at, deleted_at, stopped_at
  from service where id = %(id)s for update;

-- update_wish --
update service set wish = %(wish)s, memory_bytes = %(memory_bytes)s,
       updated_at = case when wish = %(wish)s then updated_at else now() end where id = %(id)s;

-- set_verdict --
update operation set verdict = %(verdict)s where id = %(id)s;

-- set_phase --
update service set phase = %(phase)s where id = %(id)s and deleted_at is null and phase <> %(phase)s;

-- set_power --
update service set stopped_at = case when %(stop)s then now() end, updated_at = now()
 where id = %(id)s and (stopped_at is null) = %(stop)s;

-- set_certificate --
update service set certificate = %(certificate)s, secrets = %(secrets)s where id = %(id)s;

-- mark_deleted --
update service set deleted_at = now(), updated_at = now() where id = %(id)s and deleted_at is null;

-- want_absent --
update node set spec = jsonb_set(spec, '{desired}', '"absent"'), generation = generation + 1
 where service_id = %(service_id)s and spec is not null and spec ->> 'desired' <> 'absent';

-- present_nodes --
select count(*) as present from node
 where service_id = %(service_id)s and spec is not null
   and not (coalesce(status ->> 'state', '') in ('absent', 'kept') and status ->> 'state' = spec ->> 'desired'
            and (status ->> 'generation')::bigint >= generation);

-- clear_service --
update service set cleared_at = now(), secrets = '', certificate = '' where id = %(id)s and cleared_at is null;

-- clear_nodes --
update node set spec = null, sealed = null where service_id = %(service_id)s;

-- deleted_uncleared --
select id from service where deleted_at is not null and cleared_at is null and kept_until is null;

-- views --
select s.id, s.name, s.wish, s.phase, s.notice, s.first_port, s.created_at, s.updated_at, s.stopped_at,
       (select coalesce(jsonb_agg(jsonb_build_object('name', n.name, 'generation', n.generation, 'desired', n.spec ->> 'desired',
                'status', n.status, 'age', extract(epoch from now() - n.observed_at), 'versions', h.facts -> 'versions',
                'exporter', h.facts ->> 'exporter', 'host_memory', h.facts -> 'memory_bytes', 'pooler', h.facts -> 'pooler') order by n.name), '[]')
          from node n join host h on h.id = n.host_id where n.service_id = s.id) as nodes,
       (select coalesce(jsonb_agg(jsonb_build_object('name', p.name, 'database', p.database_name, 'mode', p.mode,
                'size', p.size, 'username', p.username) order by p.name), '[]')
          from pool p where p.service_id = s.id) as pools,
       s.maintained_for,
       (select coalesce(jsonb_object_agg(u.kind, u.since), '{}') from pending_update u where u.service_id = s.id) as updates,
       (select jsonb_build_object('state', v.state, 'at', v.at, 'report', v.report)
          from verification v where v.service_id = s.id order by v.at desc limit 1) as verification
  from service s
 where s.organization_id = %(organization_id)s and s.deleted_at is null and (%(name)s::text is null or s.name = %(name)s)
 order by s.name;

-- nodes --
select n.id, n.name, n.host_id, n.spec, n.generation, n.restart, n.restart_generation, n.sealed, n.status,
       h.public_key, h.facts, h.name as host
  from node n join host h on h.id = n.host_id where n.service_id = %(service_id)s order by n.name;

-- forget_observations --
update node set status = status || '{"state": "starting", "step": "start", "reason": ""}'
 where host_id = (select id from host where name = %(host)s) and status ->> 'state' = 'running';

-- write_spec --
update node set spec = %(spec)s, generation = generation + 1 where id = %(id)s;

-- write_sealed --
update node set sealed = %(sealed)s where id = %(id)s;

-- ask_restart --
update node set restart = restart + 1, restart_generation = generation + 1, generation = generation + 1,
       spec = jsonb_set(spec, '{restart}', to_jsonb(restart + 1)) where id = %(id)s;

-- wake_hosts --
select wake_hosts(%(service_id)s);

-- operation --
select o.id, o.kind, o.state, o.reason, o.message, o.step, o.service_id, s.name as service, o.deadline < now() as overdue
  from operation o join service s on s.id = o.service_id
 where o.id = %(id)s and o.organization_id = %(organization_id)s;

-- operation_of_request --
select o.id, o.kind, o.state, o.reason, o.message, o.step, o.service_id, s.name as service, false as overdue
  from operation o join service s on s.id = o.service_id
 where o.request_key = %(key)s and o.request_signature = %(signature)s;

-- insert_operation --
insert into operation (id, organization_id, service_id, kind, deadline, request_key, request_signature)
values (%(id)s, %(organization_id)s, %(service_id)s, %(kind)s, now() + make_interval(secs => %(within)s), %(key)s, %(signature)s);

-- set_task --
update operation set task = %(task)s, secret = %(secret)s where id = %(id)s;

-- renew_task --
update operation set task = %(task)s where id = %(id)s;

-- task --
select task, secret from operation where id = %(id)s;

-- pending_tasks --
select task from operation
 where service_id = %(service_id)s and state = 'pending' and kind = 'access' order by created_at, id;

-- keep_secret --
insert into user_secret (service_id, name, secret)
select service_id, task ->> 'name', secret from operation where id = %(operation)s and secret is not null
on conflict (service_id, name) do update set secret = excluded.secret;

-- forget_secret --
delete from user_secret where service_id = %(service_id)s and name = %(name)s;

-- known_passwords --
select s.wish, s.secrets,
       (select n.status from node n where n.service_id = s.id and n.status is not null order by n.name limit 1) as status,
       array(select u.secret from user_secret u where u.service_id = s.id and u.name = %(username)s
             union all
             select o.secret from operation o
              where o.service_id = s.id and o.state = 'pending' and o.task ->> 'name' = %(username)s
                and o.secret is not null) as given
  from service s
 where s.organization_id = %(organization_id)s and s.name = %(name)s and s.deleted_at is null;

-- pools --
select name, database_name as database, mode, size, username from pool where service_id = %(service_id)s order by name;

-- write_pool --
insert into pool (service_id, name, database_name, mode, size, username)
values (%(service_id)s, %(name)s, %(database)s, %(mode)s, %(size)s, %(username)s)
on conflict (service_id, name) do update
   set database_name = excluded.database_name, mode = excluded.mode, size = excluded.size, username = excluded.username;

-- delete_pool --
delete from pool where service_id = %(service_id)s and name = %(name)s;

-- clear_access --
with branches as (delete from branch where service_id = %(service_id)s),
     secrets as (delete from user_secret where service_id = %(service_id)s),
     tasks as (update operation set secret = null where service_id = %(service_id)s and secret is not null)
delete from pool where service_id = %(service_id)s;

-- insert_event --
insert into event (organization_id, key, remote, command, subject, result)
select id, %(key)s, %(remote)s, %(command)s, %(subject)s, %(result)s from organization where id = %(organization_id)s
returning id;

-- end_event --
update event set result = %(result)s, operation = %(operation)s where id = %(id)s returning id;

-- events --
select e.id, e.at, o.name as organization, e.key, e.remote, e.command, e.subject, e.result,
       e.operation, p.state as outcome
  from event e join organization o on o.id = e.organization_id left join operation p on p.id = e.operation
 where (%(organization_id)s::uuid is null or e.organization_id = %(organization_id)s)
   and (%(before)s::bigint is null or e.id < %(before)s)
 order by e.id desc limit %(limit)s;

-- purge_events --
delete from event where at < now() - interval '1 year';

-- insert_repository --
insert into repository (service_id, kind, key) values (%(service_id)s, %(kind)s, %(key)s)
on conflict (service_id) do nothing;

-- repository --
select service_id, kind, key from repository where service_id = %(service_id)s;

-- delete_repository --
delete from repository where service_id = %(service_id)s;

-- pending_backup --
select id from operation where service_id = %(service_id)s and kind = 'backup' and state = 'pending';

-- open_backups --
select n.host_id, count(*) as open from operation o join node n on n.service_id = o.service_id
 where o.kind = 'backup' and o.state = 'pending' and (o.task ->> 'scheduled')::boolean group by n.host_id;

-- backup_candidates --
select s.id, s.organization_id, s.wish, s.created_at, n.host_id,
       jsonb_build_object('repository', n.status -> 'repository') as status,
       (select max(o.ended_at) from operation o
         where o.service_id = s.id and o.kind = 'backup' and o.state in ('failure', 'timeout')) as failed_at
  from service s join node n on n.service_id = s.id
 where s.deleted_at is null and s.phase = 'running' and s.settled is not null and n.status ->> 'state' = 'running'
   and n.spec ->> 'desired' = 'running' and n.spec ->> 'repository' is not null
   and not exists (select 1 from operation o where o.service_id = s.id and o.kind = 'backup' and o.state = 'pending')
 order by (select max(b ->> 'started_at') from jsonb_array_elements(n.status -> 'repository' -> 'backups') b) nulls first;

-- changed_problems --
select r.service_id, s.organization_id, s.name, found.problem as now
  from repository r join service s on s.id = r.service_id join node n on n.service_id = s.id,
       lateral (select n.status -> 'repository' -> 'backups' -> -1 as newest) last,
       lateral (select coalesce(nullif(n.status -> 'repository' ->> 'problem', ''),
                  nullif(n.status -> 'repository' ->> 'lost', ''),
                  case when (newest ->> 'damaged')::boolean
                       then 'Backup ' || (newest ->> 'name') || ' met pages with a wrong checksum.' end, '') as problem) found
 where s.deleted_at is null and (r.problem = '') <> (found.problem = '');

-- note_problem --
update repository set problem = %(problem)s where service_id = %(service_id)s;

-- backups --
select s.wish, r.kind, n.status,
       (select o.id from operation o where o.service_id = s.id and o.kind = 'backup' and o.state = 'pending') as operation,
       (select o.id from operation o where o.service_id = s.id and o.kind = 'verify' and o.state = 'pending') as verifying,
       (select coalesce(jsonb_agg(jsonb_build_object('backup', v.backup, 'state', v.state, 'at', v.at, 'report', v.report)
                order by v.at), '[]')
          from verification v where v.service_id = s.id) as verifications
  from service s left join repository r on r.service_id = s.id left join node n on n.service_id = s.id
 where s.organization_id = %(organization_id)s and s.name = %(name)s and s.deleted_at is null
 order by n.name limit 1;

-- pending_verify --
select id from operation where service_id = %(service_id)s and kind = 'verify' and state = 'pending';

-- write_verification --
insert into verification (service_id, backup, state, report) values (%(service_id)s, %(backup)s, %(state)s, %(report)s)
on conflict (service_id, backup) do update set at = now(), state = excluded.state, report = excluded.report;

-- last_verification --
select state, report from verification where service_id = %(service_id)s order by at desc limit 1;

-- verify_candidates --
select s.id, s.organization_id, n.host_id, n.status -> 'repository' as repository, v.state, v.at,
       (select max(o.ended_at) from operation o
         where o.service_id = s.id and o.kind = 'verify' and o.state <> 'pending') as tried_at
  from service s join node n on n.service_id = s.id
       left join lateral (select state, at from verification v where v.service_id = s.id order by v.at desc limit 1) v on true
 where s.deleted_at is null and s.phase = 'running' and s.settled is not null and n.status ->> 'state' = 'running'
   and n.spec ->> 'desired' = 'running' and jsonb_array_length(coalesce(n.status #> '{repository,backups}', '[]')) > 0
   and not exists (select 1 from operation o
                    where o.service_id = s.id and o.kind in ('verify', 'backup') and o.state = 'pending')
 order by v.at nulls first;

-- open_verifications --
select distinct n.host_id from operation o join node n on n.service_id = o.service_id
 where o.kind = 'verify' and o.state = 'pending';

-- defer --
select procrastinate_defer_jobs_v1(array[row('operations', 'carry_out', 0, %(lock)s, %(queueing_lock)s,
       jsonb_build_object('operation', %(operation)s::text), null)::procrastinate_job_to_defer_v1]);

-- begin_run --
update operation set attempt = attempt + 1 where id = %(id)s and state = 'pending' and deadline > now()
returning id, organization_id, service_id, kind, attempt, verdict;

-- hold_operation --
select attempt, state from operation where id = %(id)s for update;

-- look_at_operation --
select attempt, state from operation where id = %(id)s;

-- note_step --
update operation set step = %(step)s where id = %(id)s and attempt = %(attempt)s and state = 'pending';

-- count_fault --
update operation set faults = faults + 1 where id = %(id)s and attempt = %(attempt)s and state = 'pending' returning faults;

-- end_operation --
select end_operation(%(id)s, %(attempt)s, %(state)s, %(reason)s, %(message)s) as ended;

-- wish_in_turn --
select wish_in_turn(service_id, number) as wish from operation where id = %(id)s;

-- later_updates --
select o.id, o.task from operation o join operation mine on mine.id = %(id)s
 where o.service_id = mine.service_id and o.state = 'pending' and o.kind = 'update' and o.number > mine.number
 order by o.number;

-- end_others --
select end_operation(id, null, 'failure', 'interrupted', %(message)s) from operation
 where service_id = %(service_id)s and state = 'pending' and id <> %(id)s;

-- overdue_operations --
select id, kind, step from operation where state = 'pending' and deadline < now();

-- operations_without_job --
select o.id, o.service_id, o.kind from operation o
 where o.state = 'pending' and o.created_at < now() - interval '2 seconds'
   and not exists (select 1 from procrastinate_jobs j
                    where j.args ->> 'operation' = o.id::text and j.status in ('todo', 'doing'));

-- wake_far_jobs --
update procrastinate_jobs set scheduled_at = null
 where status = 'todo' and queue_name = 'operations' and scheduled_at > now() + interval '30 seconds';

-- purge_services --
delete from service s
 where s.cleared_at < now() - interval '30 days' and not exists (select 1 from operation o where o.service_id = s.id);

-- purge_operations --
delete from operation where state <> 'pending' and ended_at < now() - interval '30 days';

-- take_slot --
select pg_try_advisory_lock(hashtext('pgherd worker slot'), %(slot)s) as taken;

-- release_slot --
select pg_advisory_unlock(hashtext('pgherd worker slot'), %(slot)s);

-- slots --
select slot from worker_slot order by slot;

-- requeue_slot --
select procrastinate_retry_job_v2(j.id, now(), null, null, null)
  from procrastinate_jobs j join worker_slot w on w.worker_id = j.worker_id
 where j.status = 'doing' and w.slot = %(slot)s;

-- record_slot --
with left_behind as (delete from worker_slot where worker_id = %(worker_id)s and slot <> %(slot)s)
insert into worker_slot (slot, worker_id) values (%(slot)s, %(worker_id)s)
on conflict (slot) do update set worker_id = excluded.worker_id;

-- requeue_stalled --
select procrastinate_retry_job_v2(j.id, now(), null, null, null)
  from procrastinate_jobs j left join procrastinate_workers w on w.id = j.worker_id
 where j.status = 'doing' and (w.id is null or w.last_heartbeat < now() - make_interval(secs => %(silence)s));

-- reconcile_lock --
select pg_try_advisory_xact_lock(hashtext('pgherd reconcilers')) as mine;

-- nodes_to_roll --
select distinct n.service_id from node n join service s on s.id = n.service_id join host h on h.id = n.host_id
 where s.deleted_at is null and s.phase = 'running' and n.spec is not null
   and ((n.spec ->> 'platform')::integer < %(platform)s
        -- the host lost its key, or is another machine: what was sealed for the old one it cannot open
        or (h.public_key is not null and n.sealed ->> 'public_key' <> h.public_key))
   and not exists (select 1 from operation o where o.service_id = s.id and o.state = 'pending');

-- certificates --
select s.id, s.name, s.certificate, o.name as organization, o.ca_certificate
  from service s join organization o on o.id = s.organization_id
 where s.deleted_at is null and s.phase = 'running' and s.certificate <> ''
   and not exists (select 1 from operation o where o.service_id = s.id and o.state = 'pending');

-- ask_logs --
with asked as (
    insert into question (batch, node_id, ask)
    select %(batch)s, n.id, jsonb_build_object('limit', %(limit)s::integer, 'ascending', %(ascending)s::boolean,
                                               'positions', coalesce(%(positions)s::jsonb -> n.name, '{}'))
      from service s join node n on n.service_id = s.id
     where s.organization_id = %(organization_id)s and s.name = %(name)s and s.deleted_at is null
    returning node_id)
select n.name as node, pg_notify('pgherd_ask', h.name) as told
  from asked a join node n on n.id = a.node_id join host h on h.id = n.host_id;

-- log_answers --
select n.name as node, q.answer from question q join node n on n.id = q.node_id where q.batch = %(batch)s order by n.name;

-- forget_question --
delete from question where batch = %(batch)s returning batch;

-- purge_questions --
delete from question where asked_at < now() - interval '1 minute';

-- samples --
select n.name as node, s.at, s.measured
  from service v join node n on n.service_id = v.id
  left join sample s on s.node_id = n.id and s.at > now() - make_interval(secs => %(seconds)s)
       and (s.step = %(step)s::integer
            or (s.step = 30 and s.at = (select max(m.at) from sample m where m.node_id = n.id and m.step = 30)))
 where v.organization_id = %(organization_id)s and v.name = %(name)s and v.deleted_at is null
 order by n.name, s.at;

-- monitoring --
select s.secrets, s.first_port,
       (select max(h.facts ->> 'exporter') from node n join host h on h.id = n.host_id where n.service_id = s.id) as exporter
  from service s
 where s.organization_id = %(organization_id)s and s.name = %(name)s and s.deleted_at is null;

-- roll_up_samples --
select roll_up_samples(%(step)s, %(periods)s);

-- clear_samples --
delete from sample where node_id in (select id from node where service_id = %(service_id)s);

-- adrift --
select distinct s.id from service s join node n on n.service_id = s.id
 where s.deleted_at is null and s.phase <> 'poweroff' and n.spec is not null
   and (s.stopped_at is not null) <> (n.spec ->> 'desired' = 'stopped')
   and not exists (select 1 from operation o where o.service_id = s.id and o.state = 'pending');

-- upkeep --
select s.id, s.wish, s.phase = 'running' and s.stopped_at is null as runs, s.maintained_for, n.host_id, n.status, h.facts,
       n.observed_at > now() - interval '1 minute' as fresh,
       exists (select 1 from operation o where o.service_id = s.id and o.state = 'pending') as busy,
       (select coalesce(jsonb_object_agg(u.kind, u.since), '{}') from pending_update u where u.service_id = s.id) as updates
  from service s join node n on n.service_id = s.id join host h on h.id = n.host_id
 where s.deleted_at is null and s.settled is not null and n.status is not null
   and (n.status ->> 'version' is distinct from h.facts -> 'versions' ->> (s.wish ->> 'version')
        or coalesce(n.status ->> 'pooler', '') not in ('', coalesce(h.facts ->> 'pooler', ''))
        or n.status -> 'pending_restart' <> '[]'
        or exists (select 1 from pending_update u where u.service_id = s.id))
 order by s.id;

-- maintenance_under_way --
select n.host_id, count(distinct o.id) as operations from operation o join node n on n.service_id = o.service_id
 where o.kind = 'maintenance' and o.state = 'pending' group by n.host_id;

-- note_update --
insert into pending_update (service_id, kind, since) values (%(service_id)s, %(kind)s, %(since)s) on conflict do nothing;

-- forget_update --
delete from pending_update where service_id = %(service_id)s and kind = %(kind)s;

-- use_window --
update service set maintained_for = %(begin)s where id = %(id)s;
