-- The events of the three types that people ask about most, with their dimensions as columns.

-- up

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

-- down

DROP VIEW tool_metrics;
DROP VIEW discovery_metrics;
DROP VIEW auth_metrics;
