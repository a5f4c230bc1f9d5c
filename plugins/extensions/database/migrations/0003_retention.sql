-- How long rows are kept. Only tables that are named here are ever cleaned up.

-- up

CREATE TABLE retention_policies (
    table_name TEXT PRIMARY KEY NOT NULL,
    retention_days INTEGER CHECK (retention_days >= 1),  -- NULL: the configured default, METRICS_RETENTION_DAYS
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    timestamp_column TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;

-- Sums by the hour and by the day are small, and all that is left of the events: they are kept for a year and for three.
INSERT INTO retention_policies (table_name, retention_days, timestamp_column, updated_at) VALUES
    ('metrics', NULL, 'timestamp', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    ('metrics_hourly', 365, 'hour', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    ('metrics_daily', 1095, 'date', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    ('api_key_usage_log', 365, 'hour', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));

-- down

DROP TABLE retention_policies;
