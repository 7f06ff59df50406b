-- The identity of this database. A consumer group is bound to it, so that it never writes to two databases.
CREATE TABLE likes_database (
    id       uuid    NOT NULL DEFAULT gen_random_uuid(),
    only_row boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (only_row)
);
INSERT INTO likes_database DEFAULT VALUES;

-- What consumers last saw of each stream in Redis, to notice later what Redis has lost. Ids of entries are text, because
-- their numbers do not fit into a bigint.
CREATE TABLE likes_watermarks (
    stream             text        NOT NULL,
    consumer_group     text        NOT NULL,
    -- Raised when a loss is reported, so that only one consumer reports it.
    epoch              bigint      NOT NULL,
    last_generated     text        NOT NULL,
    last_delivered     text        NOT NULL,
    oldest_undelivered text,
    -- All earlier entries are acknowledged.
    settled_below      text        NOT NULL,
    entries_added      bigint      NOT NULL,
    undelivered        bigint      NOT NULL,
    pending            bigint      NOT NULL,
    has_group          boolean     NOT NULL,
    sampled_at         timestamptz NOT NULL,
    PRIMARY KEY (stream, consumer_group)
);

-- Events after which likes are missing or may be, until an operator acknowledges them.
CREATE TABLE likes_incidents (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Names the event, so that it is recorded once, whichever consumers see it.
    event           text        NOT NULL UNIQUE,
    kind            text        NOT NULL,
    -- Key prefix and consumer group.
    streams         text        NOT NULL,
    consumer_group  text        NOT NULL,
    entries_lost    bigint,
    detail          text        NOT NULL,
    detected_by     text        NOT NULL,
    detected_at     timestamptz NOT NULL DEFAULT now(),
    acknowledged_by text,
    acknowledged_at timestamptz
);

-- Roles with other names than those of roles.sql get the same access: who writes or reads likes runs a program that needs
-- these tables.
DO $$
DECLARE
    user_of_likes record;
BEGIN
    FOR user_of_likes IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS role,
            bool_or(acl.privilege_type = 'INSERT') AS writes
        FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        -- The current role owns the new tables.
        WHERE c.oid = 'likes'::regclass AND acl.grantee <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
            AND acl.privilege_type IN ('SELECT', 'INSERT')
        GROUP BY acl.grantee
    LOOP
        EXECUTE format('GRANT SELECT ON likes_database, likes_watermarks, likes_incidents TO %s', user_of_likes.role);
        IF user_of_likes.writes THEN
            EXECUTE format('GRANT INSERT, UPDATE ON likes_watermarks, likes_incidents TO %s', user_of_likes.role);
        END IF;
    END LOOP;
END $$;

UPDATE likes_schema SET version = 2;
