\echo Use "CREATE EXTENSION pgherd" to load this file. \quit

-- The platform puts this into the templates of every new cluster; it belongs to the superuser and no tenant can change
-- or drop it. Whatever runs as the superuser here has a fixed search_path and composes SQL with format() alone.
-- The functions are for the owner of the database; what they make belongs to the owner.

CREATE SCHEMA pgherd;

CREATE FUNCTION pgherd.database_owner() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database();
END;

-- A host that a subscription may connect to: a full name or an address that is not of this machine, in one spelling.
-- Where services are advertised on a loopback address, that is one too. Whether they are, the file says: anybody could
-- set such a parameter for a session or a database. The packet filter then knows which services may be called.
CREATE FUNCTION pgherd.require_remote(host text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := lower(host);
    forbidden inet[] := '{0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, ::/96, ::ffff:0:0/96, 64:ff9b::/96, fe80::/10, ff00::/8}';
BEGIN
    IF name IN ('127.0.0.1', '::1', 'localhost')
        AND EXISTS (SELECT FROM pg_file_settings f WHERE f.name = 'pgherd.loopback' AND setting = 'on' AND error IS NULL) THEN
        RETURN;
    END IF;
    IF name ~ '^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(?!$)|$)){4}$' OR name ~ '^[0-9a-f.]*:[0-9a-f:.]*$' THEN
        BEGIN
            IF NOT EXISTS (SELECT FROM unnest(forbidden) net WHERE name::inet <<= net) THEN
                RETURN;
            END IF;
        EXCEPTION WHEN invalid_text_representation THEN
            NULL;
        END;
    ELSIF name ~ '^[a-z0-9_]([a-z0-9_-]*\.)([a-z0-9_-]+\.)*[a-z][a-z0-9-]*\.?$'
        AND name !~ '(^|\.)(localhost|localdomain|local|internal)\.?$' AND name !~ '(^|\.)0x[0-9a-f]*\.?$' THEN
        RETURN;
    END IF;
    RAISE insufficient_privilege USING MESSAGE = 'host must be a full name or an address of another machine';
END $$;

-- The one spelling of a connection string; raises for everything that is not needed to reach another server.
CREATE FUNCTION pgherd.checked_connection(conninfo text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value_pattern CONSTANT text := $p$('(?:[^'\\]|\\.)*'|[^\s'\\]+)$p$;
    allowed CONSTANT text[] := '{host, port, dbname, user, password, sslmode, connect_timeout, application_name, keepalives,
        keepalives_idle, keepalives_interval, keepalives_count, channel_binding}';
    pair text[];
    word text;
    given text[] := '{}';
    result text := '';
BEGIN
    IF conninfo IS NULL OR length(conninfo) > 2000 OR conninfo ~ '[[:cntrl:]]'
        OR conninfo !~ ('^\s*(\w+\s*=\s*' || value_pattern || '(\s+|$))+$') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the connection must be written as name=value pairs';
    END IF;
    FOR pair IN SELECT regexp_matches(conninfo, '(\w+)\s*=\s*' || value_pattern, 'g') LOOP
        IF pair[1] <> ALL (allowed) OR pair[1] = ANY (given) THEN
            RAISE insufficient_privilege USING MESSAGE = format('the connection may not have %I (again)', pair[1]);
        END IF;
        word := pair[2];
        IF left(word, 1) = '''' THEN
            word := regexp_replace(substr(word, 2, length(word) - 2), '\\(.)', '\1', 'g');
        END IF;
        IF pair[1] = 'host' THEN
            PERFORM pgherd.require_remote(word);
        ELSIF word = '' OR (pair[1] = 'port' AND word !~ '^[1-9]\d{0,4}$') OR (pair[1] = 'dbname' AND word ~ '=|://') THEN
            RAISE invalid_parameter_value USING MESSAGE = format('the value of %I is not acceptable', pair[1]);
        END IF;
        given := given || pair[1];
        result := result || format('%s=''%s'' ', pair[1], replace(replace(word, '\', '\\'), '''', '\'''));
    END LOOP;
    IF NOT given @> '{host, dbname, user, password}' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the connection needs host, dbname, user and password';
    END IF;
    RETURN rtrim(result);
END $$;

CREATE FUNCTION pgherd.create_publication_for_all_tables(publication text, publish text DEFAULT 'insert, update, delete, truncate')
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE PUBLICATION %I FOR ALL TABLES WITH (publish = %L)', publication, publish);
    EXECUTE format('ALTER PUBLICATION %I OWNER TO %I', publication, pgherd.database_owner());
END $$;

-- The slot must exist on the publisher: PostgreSQL lets no function make it. Changes are applied with the rights of the
-- database's owner, never the superuser's, who would run the triggers of the tables.
CREATE FUNCTION pgherd.create_subscription(
    subscription text, connection text, publication text, slot_name text, copy_data boolean DEFAULT true
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner name := pgherd.database_owner();
BEGIN
    EXECUTE format(
        'CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (create_slot = false, slot_name = %L, copy_data = %s)',
        subscription, pgherd.checked_connection(connection), publication, slot_name, copy_data::text);
    -- Only a superuser can be given a subscription; that the owner was one, nobody outside of this transaction sees.
    EXECUTE format('ALTER ROLE %I SUPERUSER', owner);
    EXECUTE format('ALTER SUBSCRIPTION %I OWNER TO %I', subscription, owner);
    EXECUTE format('ALTER ROLE %I NOSUPERUSER', owner);
END $$;

CREATE FUNCTION pgherd.reset_statements() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reset record;
BEGIN
    SELECT n.nspname, p.proname INTO reset
        FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE e.extname = 'pg_stat_statements' AND e.extowner = 10 AND p.proname = 'pg_stat_statements_reset';
    IF NOT FOUND THEN
        RAISE undefined_object USING MESSAGE = 'this database has no extension pg_stat_statements';
    END IF;
    EXECUTE format('SELECT %I.%I(dbid => (SELECT oid FROM pg_database WHERE datname = current_database()))',
        reset.nspname, reset.proname);
END $$;

-- Guards: they look at who is logged in, since pgextwlist and SECURITY DEFINER functions run commands as the superuser.
CREATE FUNCTION pgherd.before_command() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted text;
BEGIN
    IF session_user = pg_get_userbyid(10) THEN
        RETURN;
    ELSIF tg_tag = 'CREATE SUBSCRIPTION' THEN
        IF current_user <> pg_get_userbyid(10) THEN
            RAISE insufficient_privilege USING MESSAGE = 'subscriptions are made with pgherd.create_subscription()';
        END IF;
    ELSIF tg_tag = 'DROP EXTENSION' AND NOT pg_has_role(session_user,
        (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') THEN
        -- With CASCADE it drops what belongs to others.
        RAISE insufficient_privilege USING MESSAGE = 'drop extension is for the owner of the database';
    ELSIF NOT has_database_privilege(session_user, current_database(), 'CREATE') THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('%s needs the privilege CREATE on the database', lower(tg_tag));
    ELSIF tg_tag = 'ALTER EXTENSION' AND EXISTS (SELECT FROM pg_extension JOIN pg_available_extensions() a ON a.name = extname
        WHERE extname = 'pg_partman' AND extversion <> a.default_version) THEN
        -- The script would check what the owner wrote into its tables as the superuser, by functions whose search_path begins
        -- with the owner's schema. Which extension is meant, only the text says, and it may be hidden in a function.
        RAISE insufficient_privilege USING MESSAGE = 'extensions are not updated beside an older version of pg_partman',
            HINT = 'Keep what is in its tables, drop it and create it again.';
    ELSIF tg_tag = 'CREATE EXTENSION' THEN
        -- Nothing depends on this but the words: PostgreSQL would refuse as well, less clearly. A command that is not the
        -- whole text, in a function or among others, is left to it, as pgextwlist does with a missing control file.
        wanted := (regexp_match(current_query(),
            '^\s*create\s+extension\s+(?:if\s+not\s+exists\s+)?("[^"]+"|[a-z_][a-z0-9_]*)(?!.*create\s+extension)', 'i'))[1];
        wanted := CASE WHEN wanted LIKE '"%' THEN btrim(wanted, '"') ELSE lower(wanted) END;
        IF wanted <> ALL (string_to_array(replace(current_setting('extwlist.extensions', true), '"', ''), ','))
            AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = wanted) THEN
            RAISE insufficient_privilege USING MESSAGE = format('extension %I is not one that services offer', wanted),
                HINT = 'SHOW extwlist.extensions lists those that are.';
        END IF;
    END IF;
END $$;

CREATE FUNCTION pgherd.after_command() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text;
    given text;
BEGIN
    IF session_user = pg_get_userbyid(10) THEN
        RETURN;
    ELSIF tg_tag = 'ALTER SUBSCRIPTION' THEN
        -- Up to 15 an owner may give its subscription to any superuser, who then runs the triggers of the tables.
        PERFORM FROM pg_subscription JOIN pg_database d ON d.oid = subdbid JOIN pg_roles r ON r.oid = subowner
            WHERE d.datname = current_database()
            AND (subconninfo <> pgherd.checked_connection(subconninfo) OR rolsuper AND subowner <> datdba);
        IF FOUND THEN
            RAISE insufficient_privilege USING MESSAGE = 'the subscription may not have this owner or connection',
                HINT = 'Write the connection as host=''...'' port=''...'' dbname=''...'' user=''...'' password=''...''.';
        END IF;
        RETURN;
    ELSIF tg_tag = 'CREATE FOREIGN DATA WRAPPER' THEN
        -- While the extension's script runs, so that these privileges count as the script's: pg_dump leaves them out, and a
        -- restore as the owner could not grant an option to itself.
        FOR given IN SELECT format('GRANT USAGE ON FOREIGN DATA WRAPPER %I TO pg_database_owner WITH GRANT OPTION', fdwname)
            FROM pg_event_trigger_ddl_commands() JOIN pg_foreign_data_wrapper w ON w.oid = objid
            WHERE classid = 'pg_foreign_data_wrapper'::regclass AND in_extension AND fdwowner = 10
            AND fdwname IN ('postgres_fdw', 'dblink_fdw')
        LOOP
            EXECUTE given;
        END LOOP;
        RETURN;
    END IF;
    -- CASCADE also creates what an extension requires, unseen by pgextwlist.
    WITH RECURSIVE made(oid) AS (
        SELECT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_extension'::regclass
        UNION SELECT refobjid FROM made JOIN pg_depend ON classid = 'pg_extension'::regclass AND objid = made.oid
            AND refclassid = 'pg_extension'::regclass
    )
    SELECT extname INTO wrong FROM made JOIN pg_extension USING (oid)
        WHERE extname <> ALL (string_to_array(replace(current_setting('extwlist.extensions'), '"', ''), ','));
    IF FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = format('extension %I is not one that services offer', wrong),
            HINT = 'SHOW extwlist.extensions lists those that are.';
    END IF;
    SELECT extname INTO wrong FROM pg_event_trigger_ddl_commands() JOIN pg_extension e ON e.oid = objid
        JOIN pg_available_extensions() a ON a.name = extname
        WHERE classid = 'pg_extension'::regclass AND extversion <> a.default_version;
    IF FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = format('extension %I is offered in its default version only', wrong);
    END IF;
    -- The script ran as the superuser, who may write every schema; one of its own, made by the script, is the superuser's.
    SELECT nspname INTO wrong FROM pg_event_trigger_ddl_commands() JOIN pg_extension e ON e.oid = objid
        JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE classid = 'pg_extension'::regclass AND NOT has_schema_privilege(session_user, n.oid, 'CREATE')
        AND (n.nspowner <> 10 OR n.oid < 16384) AND extname <> 'plpgsql';
    IF FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = format('permission denied for schema %I', wrong);
    END IF;
    -- What the superuser's extension gives to nobody whom tenants can be, from this list alone. Never to a role by its name,
    -- and none with a grant option on functions: scripts of pg_partman compose SQL from the names of those who have one.
    -- Never TRIGGER, REFERENCES or what the superuser itself would run.
    FOR given IN
        WITH usable(extension, object, privileges) AS (VALUES
            ('pg_partman', 'part_config', 'SELECT, INSERT, UPDATE, DELETE ON TABLE'),
            ('pg_partman', 'part_config_sub', 'SELECT, INSERT, UPDATE, DELETE ON TABLE'),
            ('pg_partman', 'custom_time_partitions', 'SELECT, INSERT, UPDATE, DELETE ON TABLE'),
            ('pg_partman', 'table_privs', 'SELECT ON TABLE'),
            ('pg_buffercache', 'pg_buffercache', 'SELECT ON TABLE'),
            ('pg_buffercache', 'pg_buffercache_numa', 'SELECT ON TABLE'),
            ('pg_buffercache', 'pg_buffercache_pages', 'EXECUTE ON FUNCTION'),
            ('pg_buffercache', 'pg_buffercache_numa_pages', 'EXECUTE ON FUNCTION'),
            ('pg_buffercache', 'pg_buffercache_summary', 'EXECUTE ON FUNCTION'),
            ('pg_buffercache', 'pg_buffercache_usage_counts', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pg_relpages', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pgstatginindex', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pgstathashindex', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pgstatindex', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pgstattuple', 'EXECUTE ON FUNCTION'),
            ('pgstattuple', 'pgstattuple_approx', 'EXECUTE ON FUNCTION')
        ), objects(class, oid, name, kind, spelled) AS (
            SELECT 'pg_class'::regclass, oid, relname, 'TABLE', oid::regclass::text FROM pg_class
                WHERE relowner = 10 AND relkind IN ('r', 'v')
            UNION ALL SELECT 'pg_proc'::regclass, oid, proname, 'FUNCTION', oid::regprocedure::text FROM pg_proc
                WHERE proowner = 10 AND prokind = 'f' AND NOT prosecdef
        )
        SELECT format('GRANT %s %s TO pg_database_owner', privileges, spelled)
            FROM pg_event_trigger_ddl_commands() made JOIN pg_extension e ON e.oid = made.objid AND extowner = 10
            JOIN usable ON extension = extname JOIN objects o ON name = object AND privileges LIKE '%ON ' || kind
            JOIN pg_depend d ON d.classid = class AND d.objid = o.oid AND d.deptype = 'e'
                AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
            WHERE made.classid = 'pg_extension'::regclass
    LOOP
        EXECUTE given;
    END LOOP;
END $$;

CREATE EVENT TRIGGER pgherd_before_command ON ddl_command_start
    WHEN TAG IN ('CREATE EXTENSION', 'ALTER EXTENSION', 'DROP EXTENSION', 'CREATE SUBSCRIPTION')
    EXECUTE FUNCTION pgherd.before_command();
CREATE EVENT TRIGGER pgherd_after_command ON ddl_command_end
    WHEN TAG IN ('CREATE EXTENSION', 'CREATE FOREIGN DATA WRAPPER', 'ALTER SUBSCRIPTION')
    EXECUTE FUNCTION pgherd.after_command();
ALTER EVENT TRIGGER pgherd_before_command ENABLE ALWAYS;
ALTER EVENT TRIGGER pgherd_after_command ENABLE ALWAYS;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgherd FROM PUBLIC;
GRANT USAGE ON SCHEMA pgherd TO pg_database_owner;
GRANT EXECUTE ON FUNCTION
    pgherd.create_publication_for_all_tables(text, text),
    pgherd.create_subscription(text, text, text, text, boolean),
    pgherd.reset_statements()
    TO pg_database_owner;
