-- As before (0008), and: a job whose time has come is woken too. Procrastinate looks for those every two seconds only.
create or replace function wake_jobs(of_service uuid) returns void language sql as $$
    with woken as (
        update procrastinate_jobs set scheduled_at = null
         where (lock = of_service::text or lock like of_service::text || '/%') and status = 'todo' and scheduled_at is not null
        returning id
    )
    select pg_notify('procrastinate_any_queue_v1', json_build_object('type', 'job_inserted', 'job_id', id)::text) from woken;
$$;
