-- Who may push, and how often each key was used. A key is stored as the SHA-256 of it in hexadecimal, never as itself.
-- Times are UTC and ISO 8601 as text: 2026-11-23T12:00:00Z.

-- up

CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: the log below names it
    key_hash TEXT NOT NULL UNIQUE CHECK (length(key_hash) = 64),
    service_name TEXT NOT NULL,
    created_at TEXT NOT NULL,
    last_used_at TEXT,
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    rate_limit INTEGER CHECK (rate_limit >= 1),  -- requests a minute; NULL takes the configured default
    usage_count INTEGER NOT NULL DEFAULT 0,
    scopes TEXT NOT NULL DEFAULT 'ingest',       -- separated by spaces
    expires_at TEXT,
    description TEXT NOT NULL DEFAULT ''
) STRICT;

-- What happened to each key, counted by the hour.
CREATE TABLE api_key_usage_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    api_key_id INTEGER NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    service_name TEXT NOT NULL,
    event TEXT NOT NULL CHECK (event IN ('created', 'revoked', 'used', 'refused')),
    hour TEXT NOT NULL,
    count INTEGER NOT NULL,
    UNIQUE (api_key_id, event, hour)
) STRICT;

-- down

DROP TABLE api_key_usage_log;
DROP TABLE api_keys;
