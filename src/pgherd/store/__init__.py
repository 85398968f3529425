"""The metadata in PostgreSQL: migrations, named SQL, transactions, secrets at rest."""
