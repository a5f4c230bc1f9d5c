-- Which database this is, and of which journal each exporter's cursor is. A copy, and a backup, keep the identity.

-- up

CREATE TABLE IF NOT EXISTS store_identity (  -- it stays when this migration is taken back
    id INTEGER PRIMARY KEY CHECK (id = 1),
    store TEXT NOT NULL CHECK (length(store) = 32)
) STRICT;

-- A database that has data takes the time of its first migration, so that its backups from before this migration are known as the same.
INSERT OR IGNORE INTO store_identity SELECT 1, CASE
    WHEN EXISTS (SELECT 1 FROM metrics) OR EXISTS (SELECT 1 FROM exporter_cursors) OR EXISTS (SELECT 1 FROM api_keys) THEN (
        SELECT substr('00000000000000000000000000000000' || replace(replace(replace(replace(replace(
            applied_at, '-', ''), ':', ''), '.', ''), '+', ''), 'T', ''), -32)
        FROM schema_migrations WHERE version = 1)
    ELSE lower(hex(randomblob(16))) END;

-- A cursor without a journal is from before this migration, and is adopted by the journal that it fits.
CREATE TABLE former_cursors AS SELECT exporter, pipeline, position FROM exporter_cursors;
DROP TABLE exporter_cursors;
CREATE TABLE exporter_cursors (            -- the key's columns come first: integrity_check of SQLite 3.40 needs that
    exporter TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    journal TEXT NOT NULL DEFAULT '',      -- its identity, in hexadecimal
    position INTEGER NOT NULL,
    items INTEGER,                         -- how many the journal had stored up to there; NULL: not known
    PRIMARY KEY (exporter, pipeline, journal)
) STRICT, WITHOUT ROWID;
INSERT INTO exporter_cursors (exporter, pipeline, position) SELECT exporter, pipeline, position FROM former_cursors;
DROP TABLE former_cursors;

-- down

CREATE TABLE former_cursors AS
    SELECT exporter, pipeline, max(position) AS position FROM exporter_cursors GROUP BY exporter, pipeline;
DROP TABLE exporter_cursors;
CREATE TABLE exporter_cursors (
    exporter TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (exporter, pipeline)
) STRICT, WITHOUT ROWID;
INSERT INTO exporter_cursors SELECT exporter, pipeline, position FROM former_cursors;
DROP TABLE former_cursors;
-- store_identity stays: the journals of this database know it.
