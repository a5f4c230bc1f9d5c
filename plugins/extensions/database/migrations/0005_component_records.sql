-- What components derived from data, by name. How far into the data they had got is in exporter_cursors, written with it.

-- up

CREATE TABLE component_records (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;

-- down

DROP TABLE component_records;
