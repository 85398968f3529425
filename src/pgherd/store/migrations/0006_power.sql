-- Power is a wish of its own, apart from the phase: a service that was stopped on purpose was created all the same.
alter table service add stopped_at timestamptz;    -- when its organization asked for the stop; null: it shall run
