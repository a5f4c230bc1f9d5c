-- Events as they came, what they add up to by hour and by day, and how far each exporter has got.
-- Times are UTC and ISO 8601 as text, so that they sort: 2026-11-23T12:00:00.000000Z.

-- up

CREATE TABLE metrics (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: the aggregates below are kept up by it
    request_id TEXT NOT NULL,
    service TEXT NOT NULL,
    service_version TEXT,
    instance_id TEXT,
    metric_type TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    value REAL NOT NULL,
    duration_ms REAL,
    dimensions TEXT,                       -- a JSON object
    metadata TEXT,                         -- a JSON object
    created_at TEXT NOT NULL,              -- when the service received it
    key_service TEXT                       -- whose API key brought it
) STRICT;

-- Each index slows every insert down: one for retention, one for questions about a service.
CREATE INDEX metrics_timestamp ON metrics (timestamp);
CREATE INDEX metrics_service_type_timestamp ON metrics (service, metric_type, timestamp);

-- The time comes first in the keys below: new rows go to the end, old ones are deleted from the front.
CREATE TABLE metrics_hourly (
    service TEXT NOT NULL,
    metric_type TEXT NOT NULL,
    hour TEXT NOT NULL,                    -- 2026-11-23T12:00:00Z
    count INTEGER NOT NULL,
    sum REAL NOT NULL,
    min REAL NOT NULL,
    max REAL NOT NULL,
    duration_count INTEGER NOT NULL,       -- of the events that have a duration
    duration_sum REAL NOT NULL,            -- in milliseconds
    average REAL GENERATED ALWAYS AS (sum / count) VIRTUAL,
    duration_average REAL GENERATED ALWAYS AS (duration_sum / duration_count) VIRTUAL,  -- NULL without durations
    PRIMARY KEY (hour, service, metric_type)
) STRICT, WITHOUT ROWID;

CREATE TABLE metrics_daily (
    service TEXT NOT NULL,
    metric_type TEXT NOT NULL,
    date TEXT NOT NULL,                    -- 2026-11-23
    count INTEGER NOT NULL,
    sum REAL NOT NULL,
    min REAL NOT NULL,
    max REAL NOT NULL,
    duration_count INTEGER NOT NULL,
    duration_sum REAL NOT NULL,
    average REAL GENERATED ALWAYS AS (sum / count) VIRTUAL,
    duration_average REAL GENERATED ALWAYS AS (duration_sum / duration_count) VIRTUAL,
    PRIMARY KEY (date, service, metric_type)
) STRICT, WITHOUT ROWID;

-- In the same file as the rows, so that rows and cursor are written in one transaction.
CREATE TABLE exporter_cursors (
    exporter TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (exporter, pipeline)
) STRICT, WITHOUT ROWID;

-- down

DROP TABLE exporter_cursors;
DROP TABLE metrics_daily;
DROP TABLE metrics_hourly;
DROP TABLE metrics;
