-- Logs are asked of the hosts, metrics are sent by them.

-- A question for the logs of one node; it lives for seconds, so that a crash may forget it.
create unlogged table question (
    batch uuid not null,                       -- the questions of one request
    node_id uuid not null references node on delete cascade,
    ask jsonb not null,                        -- telemetry.LogQuestion
    answer jsonb,                              -- list of telemetry.LogUnit
    asked_at timestamptz not null default now(),
    primary key (batch, node_id)
);
create index question_open on question (node_id) where answer is null;

create function host_api.questions() returns setof jsonb
language sql stable security definer set search_path = public, pg_temp as $$
    select q.ask || jsonb_build_object('batch', q.batch, 'node_id', q.node_id)
      from question q join node n on n.id = q.node_id join host h on h.id = n.host_id
     where h.login = session_user and q.answer is null and q.asked_at > now() - interval '10 seconds';
$$;

create function host_api.answer(batch uuid, node_id uuid, answer jsonb) returns void
language plpgsql security definer set search_path = public, pg_temp as $$
begin
    if jsonb_typeof(answer) <> 'array' or length(answer::text) > 8388608 then
        raise exception 'an answer must be a list of LogUnit';
    end if;
    update question q set answer = $3
      from node n join host h on h.id = n.host_id
     where q.batch = $1 and q.node_id = $2 and n.id = q.node_id and h.login = session_user;
    if found then
        perform pg_notify('pgherd_answer', $1::text);
    end if;
end $$;

-- How fine and how far back samples are kept: the newest `slots` of every `step` seconds, made of those of `source`.
create function sample_steps() returns table (step integer, slots integer, source integer) language sql immutable as $$
    values (30, 240, null), (300, 300, 30), (1800, 350, 300), (7200, 372, 1800), (86400, 368, 7200)
$$;

-- A ring for each node and step: a slot is written over in place, so that storage does not grow and nothing is purged.
create table sample (
    node_id uuid not null references node on delete cascade,
    step integer not null,
    slot integer not null,
    at timestamptz not null,
    measured real[] not null,                  -- in the order of telemetry.MEASURES
    primary key (node_id, step, slot)
) with (fillfactor = 85);

create function sample_slot(at timestamptz, step integer) returns integer language sql immutable as $$
    select (floor(extract(epoch from $1) / $2)::bigint % k.slots)::integer from sample_steps() k where k.step = $2
$$;

-- All samples that a host has taken since the last call. A host's clock may be wrong, but not by hours.
create function host_api.samples(samples jsonb) returns void
language plpgsql security definer set search_path = public, pg_temp as $$
begin
    if jsonb_typeof(samples) <> 'array' or length(samples::text) > 33554432 then
        raise exception 'samples must be a list of Sample';
    end if;
    insert into sample as old (node_id, step, slot, at, measured)
    select distinct on (n.id, sample_slot(s.at, 30)) n.id, 30, sample_slot(s.at, 30), s.at, s.measured[1:64]
      from jsonb_to_recordset(samples) as s (node_id uuid, at timestamptz, measured real[])
      join node n on n.id = s.node_id join host h on h.id = n.host_id
     where h.login = session_user and s.at between now() - interval '2 hours' and now() + interval '1 minute'
     order by n.id, sample_slot(s.at, 30), s.at desc
    on conflict (node_id, step, slot) do update set at = excluded.at, measured = excluded.measured
     where old.at < excluded.at;
end $$;

-- The means of the next finer samples, for each of the last `periods` periods that has ended and has none yet.
create function roll_up_samples(wanted integer, periods integer) returns void language sql as $$
    with k as (select step, source, to_timestamp(floor(extract(epoch from now() - interval '1 minute') / step) * step) as now
                 from sample_steps() where step = wanted),
         missing as (
        select n.id, k.step, k.source, from_at, from_at + make_interval(secs => k.step) as to_at
          from k join node n on n.spec is not null
               cross join generate_series(k.now - make_interval(secs => k.step * periods),
                                          k.now - make_interval(secs => k.step), make_interval(secs => k.step)) from_at
         where exists (select 1 from sample s where s.node_id = n.id and s.step = k.source
                          and s.at >= k.now - make_interval(secs => k.step * periods))
           and not exists (select 1 from sample s where s.node_id = n.id and s.step = k.step
                              and s.slot = sample_slot(from_at, k.step) and s.at >= from_at))
    insert into sample as old (node_id, step, slot, at, measured)
    select m.id, m.step, sample_slot(m.from_at, m.step), m.from_at, array_agg(mean.value order by mean.place)
      from missing m cross join lateral (
        select u.place, avg(u.value) as value
          from sample s, unnest(s.measured) with ordinality u (value, place)
         where s.node_id = m.id and s.step = m.source and s.at >= m.from_at and s.at < m.to_at
         group by u.place) mean
     group by m.id, m.step, m.from_at
    on conflict (node_id, step, slot) do update set at = excluded.at, measured = excluded.measured
     where old.at < excluded.at;
$$;

revoke all on all functions in schema host_api from public;
