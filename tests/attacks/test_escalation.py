"""Rows 11 to 25: from a tenant's role to a more powerful one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from pgherd import sealing
from pgherd.drivers import extensions
from pgherd.spec import Admin
from tests.attacks.conftest import SECRET, Fort
from tests.plugins.host import MAJOR, PASSWORD, verifier

#: What every trap tries, whoever runs it.
_SPRING = "ALTER ROLE plain SUPERUSER"
#: Names that scripts and platform functions use without a schema; each becomes a trap in the tenant's schema.
_TRAPPED = (
    "format(text, text)", "format(text, name)", "format(text, text, text)", "format(text, text, name)",
    "format(text, text, text, text, text, text)", "quote_ident(text)", "quote_literal(text)", "to_regclass(text)",
    "current_setting(text)", "set_config(text, text, boolean)", "pg_has_role(name, name, text)", "array_agg(text)",
    "has_database_privilege(name, name, text)", "pg_get_userbyid(oid)", "unnest(text[])", "lower(text)", "version()",
    "regexp_matches(text, text, text)", "replace(text, text, text)", "length(text)", "md5(text)",
    "json_build_object(text, text)", "split_part(text, text, integer)", "to_regnamespace(text)", "now()",
)  # fmt: skip


def _traps(schema: str) -> list[str]:
    body = f"AS $$ BEGIN EXECUTE '{_SPRING}'; RETURN NULL; END $$"
    functions = [f"CREATE FUNCTION {schema}.{name} RETURNS text LANGUAGE plpgsql {body}" for name in _TRAPPED]
    operators = []
    for left in ("name", "text", "oid", "integer"):
        functions.append(f"CREATE FUNCTION {schema}.spring(a {left}, b {left}) RETURNS boolean LANGUAGE plpgsql {body}")
        operators += [
            f"CREATE OPERATOR {schema}.{sign} (FUNCTION = {schema}.spring, LEFTARG = {left}, RIGHTARG = {left})"
            for sign in ("=", "<>", "||", "~", "<<=", "@>")
        ]
    return [*functions, *operators, f"CREATE TABLE {schema}.pg_extension AS SELECT 1 AS oid"]


@pytest.fixture
def other(fort: Fort) -> Iterator[str]:
    """A database of the admin's for one test, made from template0, with traps in `public`; all may make extensions."""
    made = fort.tries("avnadmin", "CREATE DATABASE other TEMPLATE template0")
    assert made == [None]
    everybody = ("GRANT ALL ON SCHEMA public TO plain, repl", "GRANT CREATE ON DATABASE other TO plain, repl")
    results = fort.tries("avnadmin", *everybody, *_traps("public"), database="other")
    assert not [result for result in results if isinstance(result, psycopg.Error)]
    yield "other"
    fort.tries("avnadmin", "DROP DATABASE other WITH (FORCE)")


def _extensions(fort: Fort, database: str) -> str:
    return fort.superuser("SELECT string_agg(extname, ',' ORDER BY extname) FROM pg_extension", database)


def test_row_11_extensions_that_are_not_listed(fort: Fort, attacker: str) -> None:
    before = _extensions(fort, "defaultdb")
    listed = extensions.names(fort.spec.version)
    every = [str(row[0]) for row in fort.tries("avnadmin", "SELECT name FROM pg_available_extensions")[0]]
    fort.refused(attacker, *(f'CREATE EXTENSION "{name}" CASCADE' for name in every if name not in listed))
    fort.refused(
        attacker,
        "CREATE EXTENSION hstore VERSION '1.4'",
        "CREATE EXTENSION hstore SCHEMA pg_catalog",
        "CREATE EXTENSION hstore SCHEMA information_schema",
        "CREATE EXTENSION hstore SCHEMA pgherd",
        "CREATE EXTENSION hstore FROM unpackaged",
        'CREATE EXTENSION "../../../../../tmp/evil"',
    )
    assert _extensions(fort, "defaultdb") == before


def test_row_11_users_without_the_databases_privileges(fort: Fort) -> None:
    """A script as the superuser needs no privilege itself: who may start it is checked beside pgextwlist."""
    assert fort.tries("avnadmin", "CREATE EXTENSION citext", "CREATE TABLE kept (mail citext)") == [None, None]
    try:
        for user in ("plain", "repl"):
            fort.refused(
                user, "CREATE EXTENSION hstore", "DROP EXTENSION citext CASCADE", "ALTER EXTENSION citext UPDATE"
            )
        assert fort.tries("avnadmin", "SELECT mail FROM kept") == [[]]
        fort.tries("avnadmin", "GRANT CREATE ON DATABASE defaultdb TO plain")
        fort.refused("plain", "DROP EXTENSION citext CASCADE")
        assert fort.tries("avnadmin", "SELECT mail FROM kept") == [[]]
    finally:
        fort.tries(
            "avnadmin", "REVOKE CREATE ON DATABASE defaultdb FROM plain", "DROP TABLE kept", "DROP EXTENSION citext"
        )


@pytest.mark.parametrize("name", ["pg_tle", "h3", "pgherd", "plpgsql"])
def test_row_12_an_allowed_name_without_a_file_of_ours(fort: Fort, attacker: str, name: str) -> None:
    before = fort.superuser("SELECT string_agg(extname || extowner, ',') FROM pg_extension", "defaultdb")
    fort.refused(attacker, f"CREATE EXTENSION {name}")
    fort.refused(attacker, "SELECT pgtle.install_extension('vector', '1', 'x', 'SELECT 1')")
    assert fort.superuser("SELECT string_agg(extname || extowner, ',') FROM pg_extension", "defaultdb") == before


def test_row_13_objects_that_scripts_adopt_or_call(fort: Fort, other: str, attacker: str) -> None:
    listed = [n for n in extensions.names(fort.spec.version) if n != "plpgsql"]
    results = fort.tries(attacker, *(f'CREATE EXTENSION "{name}" CASCADE' for name in listed), database=other)
    created = [name for name, result in zip(listed, results, strict=True) if result is None]
    assert len(created) > 20
    fort.tries("avnadmin", *(f'DROP EXTENSION "{name}" CASCADE' for name in listed), database=other)
    adopt = "CREATE FUNCTION public.hstore_version_diag(text) RETURNS int LANGUAGE sql AS 'SELECT 1'"
    assert fort.tries(attacker, adopt, "CREATE TYPE public.hstore AS (a int)", database=other) == [None, None]
    fort.refused(attacker, "CREATE EXTENSION hstore", database=other)
    members = "SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND objid = 'public.hstore'::regtype"
    assert fort.superuser(members, other) == "0"


def test_row_14_functions_of_the_platform_are_not_led_astray(fort: Fort, other: str, attacker: str) -> None:
    hostile = ["SET search_path = public, pg_catalog", "SET check_function_bodies = off", *_traps("pg_temp")]
    calls = (
        "SELECT pgherd.create_publication_for_all_tables('a')",
        "SELECT pgherd.create_publication_for_all_tables('b\"; ALTER ROLE plain SUPERUSER; --', 'insert')",
        "SELECT pgherd.create_publication_for_all_tables('c', 'insert'') ; ALTER ROLE plain SUPERUSER; --')",
        "SELECT pgherd.create_subscription('s', 'host=db.invalid dbname=x user=y password=z', 'p\"; x', 's''; x')",
        "CREATE EXTENSION pg_stat_statements",
        "SELECT pgherd.reset_statements()",
    )
    if owns := attacker == "avnadmin":
        refused = [False, False, True, True, False, False]
    else:
        refused = [True, True, True, True, False, True]  # what is for the owner, nobody else may call
    results = fort.tries(attacker, *hostile, *calls, database=other)[-len(calls) :]
    assert [isinstance(result, psycopg.Error) for result in results] == refused
    owners = "SELECT count(*) FILTER (WHERE pubowner = 'avnadmin'::regrole), count(*) FROM pg_publication"
    assert fort.superuser(owners, other) == ("2|2" if owns else "0|0")


def test_row_14_every_function_of_the_superusers_has_a_fixed_search_path(fort: Fort) -> None:
    loose = "SELECT string_agg(proname, ',') FROM pg_proc WHERE prosecdef AND proowner = 10 AND"
    loose += " coalesce(array_to_string(proconfig, ',') !~ 'search_path=pg_catalog', true)"
    for database in ("defaultdb", "template1", "postgres"):
        assert fort.superuser(loose, database) == ""


def test_a_refused_extension_is_named_with_the_reason(fort: Fort) -> None:
    program = fort.host.agent.programs[fort.spec.version]
    offered = extensions.installed(fort.spec.version, program.control_files)
    missing = [name for name, version in offered.items() if not version]
    assert missing, "this host has every extension"
    forms = ("CREATE EXTENSION {}", 'create extension if not exists "{}" schema public', "CREATE\nEXTENSION {};")
    for name, form in itertools.product((*missing, "nonsense"), forms):
        (error,) = fort.refused("avnadmin", form.format(name))
        assert f'/{name}.control": No such file' in str(error)
    for name, form in itertools.product(("pageinspect", "file_fdw"), forms):
        (error,) = fort.refused("avnadmin", form.format(name))
        assert error.diag.message_primary == f"extension {name} is not one that services offer"
        assert error.diag.message_hint == "SHOW extwlist.extensions lists those that are."
    present = [f"CREATE EXTENSION IF NOT EXISTS {name}" for name in ("plpgsql", "pgherd")]
    assert fort.tries("avnadmin", *present) == [None, None]


def test_row_15_members_of_extensions(fort: Fort, attacker: str) -> None:
    mine = f"mine_{attacker}"
    assert fort.tries(attacker, f"CREATE FUNCTION {mine}() RETURNS int LANGUAGE sql AS 'SELECT 1'") == [None]
    fort.refused(
        attacker,
        f"ALTER EXTENSION pgherd ADD FUNCTION {mine}()",
        f"ALTER EXTENSION plpgsql ADD FUNCTION {mine}()",
        "ALTER EXTENSION pgherd DROP FUNCTION pgherd.before_command()",
        "ALTER EXTENSION pgherd UPDATE",
        "ALTER EXTENSION pgherd UPDATE TO '0'",
        "ALTER EXTENSION pgherd SET SCHEMA public",
        "ALTER FUNCTION pgherd.reset_statements() DEPENDS ON EXTENSION plpgsql",
        "DROP EXTENSION pgherd CASCADE",
        "DROP SCHEMA pgherd CASCADE",
        "CREATE OR REPLACE FUNCTION pgherd.reset_statements() RETURNS void LANGUAGE sql AS 'SELECT'",
        "CREATE FUNCTION pgherd.more() RETURNS void LANGUAGE sql AS 'SELECT'",
        "ALTER FUNCTION pgherd.reset_statements() RESET search_path",
        "DROP OWNED BY postgres CASCADE",
    )
    fort.tries(attacker, f"DROP FUNCTION {mine}()")
    members = "SELECT count(*) FROM pg_depend d JOIN pg_extension e ON refobjid = e.oid"
    members += " WHERE extname = 'pgherd' AND deptype = 'e'"
    assert fort.superuser(members, "defaultdb") == fort.superuser(members, "template1") == "11"


def test_row_16_event_triggers(fort: Fort, attacker: str) -> None:
    function = f"CREATE FUNCTION on_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {_SPRING}; END $$"
    fort.tries(attacker, function)
    fort.refused(
        attacker,
        "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION on_event()",
        "ALTER EVENT TRIGGER pgherd_before_command DISABLE",
        "DROP EVENT TRIGGER pgherd_after_command",
        f"ALTER EVENT TRIGGER pgherd_after_command OWNER TO {attacker}",
    )
    fort.tries(attacker, "DROP FUNCTION on_event()")
    assert fort.superuser("SELECT string_agg(evtenabled::text, '') FROM pg_event_trigger", "defaultdb") == "AA"


def test_row_17_and_19_the_platform_runs_no_code_of_tenants(fort: Fort, attacker: str) -> None:
    """Traps everywhere that the platform's own work may come by: observation, size, the admin's new password."""
    trap = "CREATE FUNCTION public.trap() RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
    trap += f" $$ BEGIN RESET ROLE; EXECUTE '{_SPRING}'; RETURN 1; EXCEPTION WHEN OTHERS THEN RETURN 1; END $$"
    planted = fort.tries(
        attacker, trap, "CREATE TABLE baited (a int)", "CREATE INDEX ON baited ((public.trap() + a))",
        "ALTER TABLE baited ADD CHECK (public.trap() = 1), ADD COLUMN b int DEFAULT public.trap()",
        "CREATE MATERIALIZED VIEW view AS SELECT public.trap()",
        "CREATE STATISTICS s ON (public.trap() + a), b FROM baited", *_traps("public"),
        "INSERT INTO baited SELECT generate_series(1, 100)",
        f"ALTER ROLE {attacker} SET search_path = public, pg_catalog",
    )  # fmt: skip
    assert len([result for result in planted if result is None]) > 30
    spec = fort.spec
    public = sealing.public_key(fort.host.agent.host.private_key)
    fort.spec = fort.host.change(spec, admin=Admin("avnadmin", sealing.seal(public, verifier(PASSWORD))))
    fort.host.until_in_force(fort.spec)
    for table in ("ANALYZE baited", "VACUUM baited", "REINDEX TABLE baited", "REFRESH MATERIALIZED VIEW view"):
        fort.superuser(f"SET search_path = public; {table}", "defaultdb")
    assert fort.superuser("SELECT rolsuper FROM pg_roles WHERE rolname = 'plain'") == "f"
    fort.tries(attacker, f"ALTER ROLE {attacker} RESET ALL")
    fort.tries(
        "avnadmin", "DROP SCHEMA public CASCADE", "CREATE SCHEMA public",
        "GRANT USAGE, CREATE ON SCHEMA public TO plain, repl",
    )  # fmt: skip


def test_row_18_objects_given_to_the_platform(fort: Fort, attacker: str) -> None:
    mine = f"gift_{attacker}"
    fort.tries(
        attacker, f"CREATE TABLE {mine} (a int)", f"CREATE FUNCTION {mine}() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    for role in ("postgres", "pg_read_all_data", "pg_execute_server_program"):
        fort.refused(
            attacker,
            f"ALTER TABLE {mine} OWNER TO {role}",
            f"ALTER FUNCTION {mine}() OWNER TO {role}",
            f"REASSIGN OWNED BY {attacker} TO {role}",
            f"CREATE SCHEMA gift AUTHORIZATION {role}",
            f"CREATE DATABASE gift OWNER {role}",
        )
    fort.tries(attacker, f"DROP TABLE {mine}", f"DROP FUNCTION {mine}()")


def test_row_19_no_way_back_to_a_stronger_role(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker,
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "SET SESSION AUTHORIZATION DEFAULT; SET ROLE postgres",
        "RESET ROLE; RESET SESSION AUTHORIZATION; COPY (SELECT 1) TO PROGRAM 'true'",
        "SET ROLE pg_execute_server_program",
    )


_DANGEROUS = (
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_read_all_data",
    "postgres",
)


def test_row_20_roles_that_are_files_programs_or_the_superuser(fort: Fort, attacker: str) -> None:
    for role in _DANGEROUS:
        fort.refused(
            attacker,
            f"GRANT {role} TO {attacker}",
            f"GRANT {role} TO {attacker} WITH ADMIN OPTION",
            f"CREATE ROLE chain ROLE {attacker} IN ROLE {role}",
            f"ALTER GROUP {role} ADD USER {attacker}",
        )
    for attribute in ("SUPERUSER", "REPLICATION", "BYPASSRLS"):
        fort.refused(attacker, f"CREATE ROLE strong {attribute}")
        if not (attacker == "repl" and attribute == "REPLICATION"):
            fort.refused(attacker, f"ALTER ROLE {attacker} {attribute}")
    assert fort.superuser("SELECT count(*) FROM pg_roles WHERE rolname IN ('strong', 'chain')") == "0"


def test_row_21_the_platforms_roles_stay_what_they_are(fort: Fort, attacker: str) -> None:
    before = fort.superuser("SELECT md5(string_agg(a::text, ',' ORDER BY oid)) FROM pg_authid a WHERE rolsuper")
    for role in _DANGEROUS:
        fort.refused(
            attacker,
            f"ALTER ROLE {role} PASSWORD 'mine'",
            f"ALTER ROLE {role} RENAME TO gone",
            f"ALTER ROLE {role} LOGIN",
            f"ALTER ROLE {role} SET search_path = public",
            f"DROP ROLE {role}",
            f"COMMENT ON ROLE {role} IS 'mine'",
        )
    fort.refused(attacker, "REASSIGN OWNED BY postgres TO plain")
    assert fort.superuser("SELECT md5(string_agg(a::text, ',' ORDER BY oid)) FROM pg_authid a WHERE rolsuper") == before
    with pytest.raises(psycopg.OperationalError):
        fort.connect("postgres", password="mine")


def test_row_22_catalogs(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker,
        "UPDATE pg_authid SET rolsuper = true",
        "UPDATE pg_catalog.pg_proc SET prosecdef = true",
        "UPDATE pg_database SET datdba = 10",
        "INSERT INTO pg_auth_members SELECT 10, 10, 10, true",
        "DELETE FROM pg_event_trigger",
        "SELECT rolpassword FROM pg_authid",
        "SELECT passwd FROM pg_shadow",
        "SELECT subconninfo FROM pg_subscription",
        "CREATE TABLE pg_catalog.mine (a int)",
        "LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE pg_database IN EXCLUSIVE MODE",
        "SET allow_system_table_mods = on",
    )


@pytest.mark.parametrize(
    "name", ["postgres ", "Postgres", "p\u043estgres", "all", "+postgres", "replication", "@x", "\u200bpostgres"]
)
def test_row_23_names_like_the_platforms(fort: Fort, name: str) -> None:
    made = fort.tries("avnadmin", f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{SECRET}'")
    assert made == [None]
    try:
        with fort.host.connect(fort.spec, user=name, password=SECRET) as connection:
            row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        assert row == (False,)
        # With pools, the service's own OS user may be any tenant on the socket, so that PgBouncer can; no more.
        psql, run = fort.host.agent.programs[MAJOR].bin / "psql", fort.host.directory(fort.spec) / "run"
        argv = [str(psql), "-XAtw", "-h", str(run), "-p", str(fort.spec.port), "-U", name, "-c", "SHOW is_superuser"]
        assert fort.as_service(*argv, "-d", "defaultdb").out in (b"", b"off\n")
        for database in ("postgres", "template1"):
            assert fort.as_service(*argv, "-d", database).code != 0
    finally:
        fort.tries("avnadmin", f'DROP ROLE "{name}"')


def test_row_23_reserved_names(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker, 'CREATE ROLE "pg_mine"', "CREATE ROLE postgres", "CREATE ROLE public", 'CREATE SCHEMA "pg_mine"'
    )


def test_row_24_databases_of_the_platform(fort: Fort, attacker: str) -> None:
    for database in ("postgres", "template1", "template0"):
        with pytest.raises(psycopg.OperationalError):
            fort.connect(attacker, dbname=database)
        fort.refused(
            attacker,
            f"ALTER DATABASE {database} RENAME TO mine",
            f"ALTER DATABASE {database} OWNER TO {attacker}",
            f"ALTER DATABASE {database} CONNECTION LIMIT 0",
            f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            f"ALTER DATABASE {database} SET search_path = public",
            f"DROP DATABASE {database}",
        )
        assert fort.superuser("SELECT count(*) FROM pg_db_role_setting") == "0"
        granted = f"SELECT has_database_privilege('{attacker}', '{database}', 'CONNECT')"
        assert fort.superuser(granted) == ("t" if database == "template0" else "f")


def test_row_24_an_owner_that_shuts_its_database_does_not_shut_out_the_platform(fort: Fort) -> None:
    changes = ("ALLOW_CONNECTIONS false", "CONNECTION LIMIT 0", "RENAME TO elsewhere")
    with fort.connect("avnadmin") as connection:
        fort.superuser("CREATE DATABASE aside OWNER avnadmin")
        connection.close()
    with fort.connect("avnadmin", dbname="aside") as connection:
        for change in changes:
            connection.execute(f"ALTER DATABASE defaultdb {change}".encode())
            name = "elsewhere" if "RENAME" in change else "defaultdb"
            public = sealing.public_key(fort.host.agent.host.private_key)
            admin = Admin("avnadmin", sealing.seal(public, verifier(PASSWORD)))
            fort.spec = fort.host.change(fort.spec, admin=admin)
            status = fort.host.until_in_force(fort.spec)
            assert (status.state, status.reason) == ("running", "")
            fort.superuser(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true CONNECTION LIMIT -1")
    fort.superuser("ALTER DATABASE elsewhere RENAME TO defaultdb; DROP DATABASE aside WITH (FORCE)")


def test_row_25_templates(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker,
        "CREATE DATABASE mine TEMPLATE postgres",
        "ALTER DATABASE template0 IS_TEMPLATE false",
        "UPDATE pg_database SET datallowconn = true WHERE datname = 'template0'",
    )
    content = "SELECT count(*) FROM pg_class WHERE oid >= 16384"
    assert fort.superuser(content, "template1") == "0"


@pytest.mark.parametrize("template", ["template0", "template1"])
def test_row_25_guards_are_in_every_database_that_tenants_make(fort: Fort, template: str) -> None:
    assert fort.tries("avnadmin", f"CREATE DATABASE copied TEMPLATE {template}") == [None]
    try:
        fort.refused(
            "avnadmin",
            "CREATE EXTENSION file_fdw",
            "CREATE EXTENSION hstore SCHEMA pg_catalog",
            "DROP EXTENSION pgherd",
            "DROP EVENT TRIGGER pgherd_after_command",
            database="copied",
        )
        owner = "SELECT extowner::regrole FROM pg_extension WHERE extname = 'pgherd'"
        assert fort.superuser(owner, "copied") == "postgres"
    finally:
        fort.superuser("DROP DATABASE copied WITH (FORCE)")


def test_row_21_the_poolers_role_leads_nowhere(fort: Fort) -> None:
    """Up to 15 `CREATEROLE` may change it: that breaks the service's own pools, and gives nobody a verifier."""
    present = fort.superuser("SELECT count(*) FROM pg_roles WHERE rolname = 'pgherd_pooler'")
    if present == "0":
        pytest.skip("no PgBouncer on this host")
    fort.tries("avnadmin", f"ALTER ROLE pgherd_pooler PASSWORD '{SECRET}'", "GRANT pgherd_pooler TO plain")
    try:
        for database in ("defaultdb", "postgres"):
            with pytest.raises(psycopg.OperationalError):
                fort.connect("pgherd_pooler", dbname=database)
        with pytest.raises(psycopg.OperationalError):
            fort.connect("plain", dbname="postgres")
    finally:
        fort.superuser("ALTER ROLE pgherd_pooler PASSWORD NULL; REVOKE pgherd_pooler FROM plain")
