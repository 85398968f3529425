"""Rows 1 to 10: from SQL to the host's files, programs and the server's process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg
import pytest

from pgherd.drivers import extensions
from tests.attacks.conftest import ATTACKERS, Fort

_READERS = (
    "pg_read_file('postgresql.conf')", "pg_read_file('/etc/passwd')", "pg_read_binary_file('PG_VERSION')",
    "pg_ls_dir('.')", "pg_stat_file('PG_VERSION')", "pg_ls_logdir()", "pg_ls_waldir()", "pg_ls_tmpdir()",
    "pg_ls_archive_statusdir()", "pg_current_logfile()", "pg_read_file('PG_VERSION', 0, 10, true)",
    "pg_hba_file_rules()", "pg_show_all_file_settings()", "pg_ident_file_mappings()", "pg_config()",
    "pg_reload_conf()", "pg_rotate_logfile()", "pg_switch_wal()", "pg_backup_start('x')", "pg_promote()",
    "lo_import('/etc/passwd')",
)  # fmt: skip


def test_row_01_copy_program(fort: Fort, attacker: str, target: Path) -> None:
    fort.refused(
        attacker,
        f"COPY (SELECT 'written') TO PROGRAM 'cat >{target}'",
        "CREATE TEMP TABLE loot(line text); COPY loot FROM PROGRAM 'id'",
        f"DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''cat >{target}'''; END $$",
    )
    assert target.read_text() == "untouched"


def test_row_02_copy_file(fort: Fort, attacker: str, target: Path) -> None:
    fort.refused(
        attacker,
        f"COPY (SELECT 'written') TO '{target}'",
        "CREATE TEMP TABLE loot(line text); COPY loot FROM '/etc/passwd'",
        "CREATE TEMP TABLE loot(line text); COPY loot FROM 'PG_VERSION'",
    )
    assert target.read_text() == "untouched"


def test_row_03_functions_that_read_and_write_files(fort: Fort, attacker: str, target: Path) -> None:
    fort.refused(attacker, *(f"SELECT * FROM {function}" for function in _READERS))
    fort.refused(
        attacker,
        f"SELECT lo_export(lo_from_bytea(0, 'written'), '{target}')",
        "CREATE EXTENSION adminpack",
        f"SELECT pg_file_write('{target}', 'written', false)",
    )
    assert target.read_text() == "untouched"
    assert fort.superuser("SELECT count(*) FROM pg_extension WHERE extname = 'adminpack'", "defaultdb") == "0"


def test_row_04_foreign_tables_of_files(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker,
        "CREATE EXTENSION file_fdw",
        "CREATE EXTENSION log_fdw",
        "CREATE FOREIGN DATA WRAPPER mine HANDLER file_fdw_handler",
        "CREATE FUNCTION handler() RETURNS fdw_handler LANGUAGE c AS '$libdir/file_fdw', 'file_fdw_handler'",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
    )
    assert fort.superuser("SELECT count(*) FROM pg_foreign_data_wrapper WHERE fdwowner <> 10", "defaultdb") == "0"


@pytest.mark.parametrize("language", ["plpython3u", "plperlu", "pltclu", "plperl", "pltcl", "plsh", "pllua"])
def test_row_05_and_09_languages_that_are_code_on_the_host(fort: Fort, attacker: str, language: str) -> None:
    """PL/Perl's environment and opcodes (row 9) cannot be reached: services have no PL/Perl."""
    fort.refused(
        attacker,
        f"CREATE EXTENSION {language}",
        f"CREATE LANGUAGE {language}",
        f"CREATE FUNCTION f() RETURNS text LANGUAGE {language} AS 'return 1'",
    )
    languages = fort.superuser("SELECT string_agg(lanname, ',' ORDER BY lanname) FROM pg_language", "defaultdb")
    assert languages == "c,internal,plpgsql,sql"
    assert language not in extensions.names(fort.spec.version)


def test_row_06_libraries_and_functions_of_c(fort: Fort, attacker: str) -> None:
    fort.refused(
        attacker,
        "LOAD 'auto_explain'",
        "LOAD '$libdir/../../../../../../tmp/evil.so'",
        "CREATE FUNCTION sys(text) RETURNS int LANGUAGE c AS '/lib/x86_64-linux-gnu/libc.so.6', 'system'",
        "CREATE FUNCTION f(cstring) RETURNS int LANGUAGE internal AS 'byteain'",
        "CREATE FUNCTION f(internal) RETURNS internal LANGUAGE sql AS 'SELECT $1'",
        "CREATE FUNCTION f(internal) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
        "CREATE AGGREGATE a(int) (sfunc = int4_avg_accum, stype = internal)",
        "CREATE TYPE t (INPUT = textin, OUTPUT = textout)",
        "CREATE CAST (text AS int8) WITHOUT FUNCTION",
        "CREATE OPERATOR CLASS c FOR TYPE int4 USING btree AS FUNCTION 1 btint4cmp(int4, int4)",
        "CREATE ACCESS METHOD m TYPE INDEX HANDLER bthandler",
        "SELECT internal_in('1')",
    )
    made = fort.superuser("SELECT count(*) FROM pg_proc WHERE prolang IN (12, 13) AND proowner <> 10", "defaultdb")
    assert made == "0"


def test_row_07_alter_system(fort: Fort, attacker: str) -> None:
    kept = fort.as_service("cat", str(fort.pgdata / "postgresql.auto.conf")).out
    fort.refused(
        attacker,
        "ALTER SYSTEM SET archive_command = 'touch /tmp/x'",
        "ALTER SYSTEM RESET ALL",
        f"GRANT ALTER SYSTEM ON PARAMETER archive_command TO {attacker}",
        f"GRANT SET ON PARAMETER session_preload_libraries TO {attacker}",
    )
    assert fort.as_service("cat", str(fort.pgdata / "postgresql.auto.conf")).out == kept
    assert fort.superuser("SHOW archive_command") == "/bin/true"


@pytest.mark.parametrize(
    "setting",
    [
        "session_preload_libraries = 'evil'", "shared_preload_libraries = 'evil'", "dynamic_library_path = '/tmp'",
        "log_directory = '/tmp'", "archive_command = 'id'", "restore_command = 'id'", "ssl_passphrase_command = 'id'",
        "log_statement = 'none'", "allow_system_table_mods = on", "extwlist.extensions = 'file_fdw'",
        "extwlist.custom_path = '/tmp'", "session_replication_role = 'replica'", "jit_provider = '/tmp/evil'",
        "temp_file_limit = -1", "unix_socket_directories = '/tmp'", "zero_damaged_pages = on",
    ],
)  # fmt: skip
def test_row_08_parameters_of_roles_and_databases(fort: Fort, setting: str) -> None:
    name = setting.split(" ")[0]
    before = fort.superuser(f"SHOW {name}") if "extwlist" not in name else ""
    for attacker in ATTACKERS:
        fort.refused(
            attacker,
            f"SET {setting}",
            f"ALTER ROLE {attacker} SET {setting}",
            f"ALTER DATABASE defaultdb SET {setting}",
            f"ALTER ROLE ALL SET {setting}",
            f"ALTER ROLE postgres SET {setting}",
            f"CREATE FUNCTION f() RETURNS int LANGUAGE sql SET {setting} AS 'SELECT 1'",
        )
    assert fort.superuser("SELECT count(*) FROM pg_db_role_setting") == "0"
    if before:
        assert fort.superuser(f"SHOW {name}") == before


def test_row_08_startup_options_do_not_widen_the_list_of_extensions(fort: Fort, attacker: str) -> None:
    with fort.connect(attacker, options="-c extwlist.extensions=file_fdw,adminpack") as connection:
        for name in ("file_fdw", "adminpack"):
            with pytest.raises(psycopg.Error):
                connection.execute(f"CREATE EXTENSION {name}".encode())
    for wrong in ("-c session_preload_libraries=evil", "-c shared_preload_libraries=evil"):
        with pytest.raises(psycopg.OperationalError):
            fort.connect(attacker, options=wrong)
    assert fort.superuser("SELECT count(*) FROM pg_extension WHERE extname ~ 'file|admin'", "defaultdb") == "0"


def test_row_08_what_an_owner_sets_does_not_lead_the_platform(fort: Fort) -> None:
    """The owner locks itself and others out of its database, but not the platform, which changes a password there."""
    settings = (
        "local_preload_libraries = 'nothing'", "role = 'plain'", "default_transaction_read_only = on",
        "standard_conforming_strings = off", "search_path = 'public'", "statement_timeout = 1",
        "client_encoding = 'SQL_ASCII'",
    )  # fmt: skip
    try:
        assert (
            fort.tries("avnadmin", *(f"ALTER DATABASE defaultdb SET {setting}" for setting in settings)) == [None] * 7
        )
        sees = "SELECT current_user, current_setting('search_path'), current_setting('transaction_read_only')"
        assert fort.superuser(sees, "defaultdb") == "postgres|pg_catalog|off"
    finally:
        fort.superuser("ALTER DATABASE defaultdb RESET ALL")


def test_row_10_large_objects_and_wide_values_do_not_crash_the_node(fort: Fort, attacker: str) -> None:
    fort.tries(
        attacker,
        "SELECT lo_put(lo_create(0), 1000, 'x')",
        "SELECT lo_put(lo_create(0), 4398046511103, 'x')",
        "SELECT lo_truncate64(lo_open(lo_create(0), 131072), 4398046511104)",
        "SELECT repeat('x', 1073741824)",
        "CREATE TEMP TABLE wide AS SELECT string_agg(md5(i::text), '') AS v FROM generate_series(1, 20000) i",
        "SELECT substr(v, 100000, 50) FROM wide",
        "SELECT ('[' || repeat('[', 100000))::json",
        "SELECT repeat('(', 50000)::tsquery",
    )
    digest = hashlib.md5(b"alive", usedforsecurity=False).hexdigest()
    assert fort.tries(attacker, "SELECT md5('alive')") == [[(digest,)]]
