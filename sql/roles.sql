-- Creates three roles with minimal privileges. Optional, and not a migration; see docs/postgres.md.
--
-- Run it as a superuser in the database of likestream:
--   psql --set ON_ERROR_STOP=1 --dbname likes --file sql/roles.sql
-- before the first `likesctl migrate`, after it, and after each migration. It is idempotent. Tables that `likesctl migrate`
-- created as another role are handed over to likestream_migrator.
--
-- The roles have no passwords yet: run \password likestream_consumer, or allow client certificates in pg_hba.conf.

BEGIN;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['likestream_migrator', 'likestream_consumer', 'likestream_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
    END LOOP;
    -- For the staging table of each consumer's session.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO likestream_consumer', current_database());
END $$;

-- Before Postgres 15 every role could create tables in public and thereby shadow the real ones.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO likestream_migrator, likestream_consumer, likestream_reader;

-- likestream_migrator, for `likesctl migrate`: owns the tables of likestream.
GRANT CREATE ON SCHEMA public TO likestream_migrator;
DO $$
DECLARE
    owned regclass;
BEGIN
    FOR owned IN
        SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
            -- Includes the tables of hash_partitions.sql.
            AND (relname IN ('likes', 'likes_before_hashing', 'likes_schema', 'refinery_schema_history')
                OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('public.likes')))
            AND relowner <> 'likestream_migrator'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO likestream_migrator', owned);
    END LOOP;
END $$;

-- likestream_consumer: inserts likes, and cannot update or delete them or change the schema.
-- likestream_reader: for operators who use read-only commands of likesctl (verify, doctor) and `pending ack`. `likesctl
-- reprocess` stores likes and needs the role of the consumers.
DO $$
BEGIN
    IF to_regclass('public.likes') IS NOT NULL THEN
        GRANT SELECT, INSERT ON public.likes TO likestream_consumer;
        GRANT SELECT ON public.likes TO likestream_reader;
    END IF;
    IF to_regclass('public.likes_schema') IS NOT NULL THEN
        GRANT SELECT ON public.likes_schema TO likestream_consumer, likestream_reader;
    END IF;
END $$;

COMMIT;
