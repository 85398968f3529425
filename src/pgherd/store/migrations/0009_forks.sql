-- Data that does not begin with an empty cluster: forks, restores in place, services that come back.

alter table service
    add origin jsonb,                              -- model.origin.Origin: what its data was made from last
    add kept_until timestamptz;                    -- deleted, but with its repository, which is removed after this

-- From `at` on the service's history is on `timeline`; before it was on `left_timeline`. `lost`: why its host made its
-- data anew. Written as hosts report it, which holds the node; without a reference, which would wait for the service.
create table branch (
    service_id uuid not null,
    at timestamptz not null,
    timeline integer not null,
    left_timeline integer not null,
    lost text not null default '',
    told boolean not null default false,           -- there is an event of the loss
    primary key (service_id, at)
);

create function note_branch() returns trigger language plpgsql as $$
begin
    if new.status -> 'origin' ->> 'at' <> '' and (new.status -> 'origin' ->> 'timeline')::integer > 0 then
        insert into branch (service_id, at, timeline, left_timeline, lost)
        values (new.service_id, (new.status -> 'origin' ->> 'at')::timestamptz,
                (new.status -> 'origin' ->> 'timeline')::integer, (new.status -> 'origin' ->> 'left')::integer,
                new.status -> 'origin' ->> 'lost')
        on conflict do nothing;
    end if;
    return null;
end $$;

create trigger note_branch after update of status on node for each row
when (new.status -> 'origin' is distinct from old.status -> 'origin' and jsonb_typeof(new.status -> 'origin') = 'object')
execute function note_branch();
