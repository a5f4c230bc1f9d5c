BEGIN TRANSACTION;
CREATE TABLE api_key_usage_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    api_key_id INTEGER NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    service_name TEXT NOT NULL,
    event TEXT NOT NULL CHECK (event IN ('created', 'revoked', 'used', 'refused')),
    hour TEXT NOT NULL,
    count INTEGER NOT NULL,
    UNIQUE (api_key_id, event, hour)
) STRICT;
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
CREATE TABLE component_records (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "component_records" VALUES('connector.series','["tool_execution",[["client_name","_unset"],["client_version","_unset"],["method","_unset"],["server_name","_unset"],["server_path","_unset"],["service","golden"],["success","true"],["tool_name","_"],["user_hash","_unset"]]]',X'97CF18ECEF2832B981D8CB4072C000000000009D19000000000000000000000000CB3FA33333333333359CCB3F747AE147AE147BCB3F847AE147AE147BCB3F9999999999999ACB3FA999999999999ACB3FB999999999999ACB3FD0000000000000CB3FE0000000000000CB3FF0000000000000CB4004000000000000CB4014000000000000CB4024000000000000CB403E000000000000C0CF18ECEF2832B981D8');
CREATE TABLE exporter_cursors (
    exporter TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (exporter, pipeline)
) STRICT, WITHOUT ROWID;
INSERT INTO "exporter_cursors" VALUES('connector.series','events',22);
INSERT INTO "exporter_cursors" VALUES('sqlite','events',2);
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
INSERT INTO "metrics" VALUES(1,'req_486646584b6ea527','golden','1.2.3','i','tool_execution','2026-11-23T12:00:00.000000Z',0.0,1.5,'{"tool_name":"é","success":true,"n":null,"count":1099511627776}','{"id":0,"deep":{"a":[1,2.5,"x",null]}}','2026-11-30T21:15:07.339442Z','test');
INSERT INTO "metrics" VALUES(2,'req_486646584b6ea527','golden','1.2.3','i','tool_execution','2026-11-23T12:00:00.000000Z',1.0,1.5,'{"tool_name":"é","success":true,"n":null,"count":1099511627776}','{"id":1,"deep":{"a":[1,2.5,"x",null]}}','2026-11-30T21:15:07.339442Z','test');
INSERT INTO "metrics" VALUES(3,'req_486646584b6ea527','golden','1.2.3','i','tool_execution','2026-11-23T12:00:00.000000Z',2.0,1.5,'{"tool_name":"é","success":true,"n":null,"count":1099511627776}','{"id":2,"deep":{"a":[1,2.5,"x",null]}}','2026-11-30T21:15:07.339442Z','test');
INSERT INTO "metrics" VALUES(4,'req_1aa4ec43e2e70b30','golden','1.2.3','i','tool_execution','2026-11-23T12:00:00.000000Z',3.0,1.5,'{"tool_name":"é","success":true,"n":null,"count":1099511627776}','{"id":3,"deep":{"a":[1,2.5,"x",null]}}','2026-11-30T21:15:07.371910Z','test');
INSERT INTO "metrics" VALUES(5,'req_1aa4ec43e2e70b30','golden','1.2.3','i','tool_execution','2026-11-23T12:00:00.000000Z',4.0,1.5,'{"tool_name":"é","success":true,"n":null,"count":1099511627776}','{"id":4,"deep":{"a":[1,2.5,"x",null]}}','2026-11-30T21:15:07.371910Z','test');
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
INSERT INTO "metrics_daily" VALUES('golden','tool_execution','2026-11-23',5,10.0,0.0,4.0,5,7.5);
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
INSERT INTO "metrics_hourly" VALUES('golden','tool_execution','2026-11-23T12:00:00Z',5,10.0,0.0,4.0,5,7.5);
CREATE TABLE retention_policies (
    table_name TEXT PRIMARY KEY NOT NULL,
    retention_days INTEGER CHECK (retention_days >= 1),  -- NULL: the configured default, METRICS_RETENTION_DAYS
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    timestamp_column TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
INSERT INTO "retention_policies" VALUES('metrics',NULL,1,'timestamp','2026-11-30T21:15:06.889Z');
INSERT INTO "retention_policies" VALUES('metrics_hourly',365,1,'hour','2026-11-30T21:15:06.889Z');
INSERT INTO "retention_policies" VALUES('metrics_daily',1095,1,'date','2026-11-30T21:15:06.889Z');
INSERT INTO "retention_policies" VALUES('api_key_usage_log',365,1,'hour','2026-11-30T21:15:06.889Z');
CREATE TABLE schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT;
INSERT INTO "schema_migrations" VALUES(1,'metrics','0f44d50f5fb48a20dd92cacbd2fc73a231b2629951b8c2ede83a733149a70ceb','2026-11-30T21:15:06.877963+00:00');
INSERT INTO "schema_migrations" VALUES(2,'api_keys','5ee5f2a70f673ee685122b42a0b99b89c7f08748bb4dba4cb8a9f712af8546d1','2026-11-30T21:15:06.885312+00:00');
INSERT INTO "schema_migrations" VALUES(3,'retention','ad5854ffb11f76943eae692e19ad55e3138dbe3009e14716bf69bad77e6e18fc','2026-11-30T21:15:06.889547+00:00');
INSERT INTO "schema_migrations" VALUES(4,'views','1514ed8cf9569e3e75bfcdcc9e7a80e910cf3e011751105d9817ec1118ff9e86','2026-11-30T21:15:06.892834+00:00');
INSERT INTO "schema_migrations" VALUES(5,'component_records','1eea45cefc5fcaa0a476a80982ef46222452a437d57d88aa11b5818e93a01cd6','2026-11-30T21:15:06.901603+00:00');
CREATE INDEX metrics_timestamp ON metrics (timestamp);
CREATE INDEX metrics_service_type_timestamp ON metrics (service, metric_type, timestamp);
CREATE VIEW auth_metrics AS
SELECT id, service, timestamp, value, duration_ms,
    json_extract(dimensions, '$.success') AS success,
    json_extract(dimensions, '$.method') AS method,
    json_extract(dimensions, '$.server') AS server,
    json_extract(dimensions, '$.target_kind') AS target_kind,
    json_extract(dimensions, '$.user_hash') AS user_hash
FROM metrics WHERE metric_type = 'auth_request';
CREATE VIEW discovery_metrics AS
SELECT id, service, timestamp, value, duration_ms,
    json_extract(dimensions, '$.query') AS query,
    json_extract(dimensions, '$.results_count') AS results_count,
    json_extract(dimensions, '$.top_k_services') AS top_k_services,
    json_extract(dimensions, '$.top_n_tools') AS top_n_tools
FROM metrics WHERE metric_type = 'tool_discovery';
CREATE VIEW tool_metrics AS
SELECT id, service, timestamp, value, duration_ms,
    json_extract(dimensions, '$.method') AS method,
    json_extract(dimensions, '$.server_name') AS server_name,
    json_extract(dimensions, '$.server_path') AS server_path,
    json_extract(dimensions, '$.tool_name') AS tool_name,
    json_extract(dimensions, '$.client_name') AS client_name,
    json_extract(dimensions, '$.client_version') AS client_version,
    json_extract(dimensions, '$.success') AS success,
    json_extract(dimensions, '$.user_hash') AS user_hash
FROM metrics WHERE metric_type = 'tool_execution';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('metrics',5);
COMMIT;
