-- A random public id for each key: logs, metrics and listings show it. Nothing that they show is derived from the key,
-- so a weak key cannot be guessed offline. Pre-shared keys have theirs by digest, so that all nodes show the same one.

-- up

ALTER TABLE api_keys ADD COLUMN public_id TEXT NOT NULL DEFAULT '';

UPDATE api_keys SET public_id = lower(hex(randomblob(6)));

CREATE TABLE preshared_key_ids (
    key_hash TEXT PRIMARY KEY CHECK (length(key_hash) = 64),
    public_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A trigger, so that a row that another program inserts has an id, too.
CREATE TRIGGER api_keys_public_id AFTER INSERT ON api_keys WHEN new.public_id = '' BEGIN
    UPDATE api_keys
    SET public_id = coalesce(
        (SELECT public_id FROM preshared_key_ids WHERE key_hash = new.key_hash), lower(hex(randomblob(6)))
    )
    WHERE id = new.id;
END;

-- down

DROP TRIGGER api_keys_public_id;
DROP TABLE preshared_key_ids;
ALTER TABLE api_keys DROP COLUMN public_id;
