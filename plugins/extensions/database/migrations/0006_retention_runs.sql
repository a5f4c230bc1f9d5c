-- The last cleanup of each table: how long rows were kept then (0: the policy was not active, NULL: no cleanup yet), and when it was.

-- up

CREATE TABLE retention_runs (
    table_name TEXT PRIMARY KEY NOT NULL,
    retention_days INTEGER,
    at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- down

DROP TABLE retention_runs;
