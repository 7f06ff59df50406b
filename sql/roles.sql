-- Three roles with no more rights than their work needs. Optional, and not one of the migrations; see docs/postgres.md.
--
-- By a superuser, in the database of likestream:
--   psql --set ON_ERROR_STOP=1 --dbname likes --file sql/roles.sql
-- before the first `likesctl migrate`, again after it, and again after each one that changed something. It can be repeated
-- at any time. What `likesctl migrate` has made as another role passes to likestream_migrator.
--
-- None of them has a password yet: \password likestream_consumer, or let them in by certificate in pg_hba.conf.

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

-- Before Postgres 15 everybody might make tables there, which others would then take for the real ones.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO likestream_migrator, likestream_consumer, likestream_reader;

-- likestream_migrator, for `likesctl migrate`: owns the tables, and so may do anything to them, and to nothing else.
GRANT CREATE ON SCHEMA public TO likestream_migrator;
DO $$
DECLARE
    owned regclass;
BEGIN
    FOR owned IN
        SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
            -- Also those of hash_partitions.sql.
            AND (relname IN ('likes', 'likes_before_hashing', 'likes_schema', 'refinery_schema_history')
                OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('public.likes')))
            AND relowner <> 'likestream_migrator'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO likestream_migrator', owned);
    END LOOP;
END $$;

-- likestream_consumer: adds likes. It can't change or delete one, nor anything of the schema.
-- likestream_reader, for people: `likesctl` that only looks, `verify` and `doctor` among it, and "pending ack". `likesctl
-- reprocess` stores likes, and so needs the role of the consumers.
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
