-- Creates three roles with minimal privileges. Optional, and not a migration; see docs/postgres.md.
--
-- Run it once, in the database of likestream, before or after the first `likesctl migrate`:
--   psql --set ON_ERROR_STOP=1 --dbname likes --file sql/roles.sql
-- as a role with CREATEROLE that owns the database or has CREATE on it; a superuser is not needed. Every `likesctl migrate`
-- grants the privileges on the tables. This file is idempotent.
--
-- Tables that `likesctl migrate` created as another role are handed over to likestream_migrator: run this file as that role,
-- or as a superuser.
--
-- The roles have no passwords yet: run \password likestream_consumer, or allow client certificates in pg_hba.conf.

BEGIN;

DO $$
DECLARE
    name text;
    may_grant constant boolean := has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION');
BEGIN
    FOREACH name IN ARRAY ARRAY['likestream_migrator', 'likestream_consumer', 'likestream_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        IF may_grant THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        END IF;
        -- Every role has it, unless the owner of the database revoked it.
        IF NOT has_database_privilege(name, current_database(), 'CONNECT') THEN
            RAISE 'cannot grant CONNECT on database % to %: % does not own the database; run this file as its owner',
                current_database(), name, current_user;
        END IF;
    END LOOP;
    -- For the staging table of each consumer's session.
    IF may_grant THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO likestream_consumer', current_database());
    END IF;
    IF NOT has_database_privilege('likestream_consumer', current_database(), 'TEMPORARY') THEN
        RAISE 'cannot grant TEMPORARY on database % to likestream_consumer: % does not own the database; run this file as its owner',
            current_database(), current_user;
    END IF;
END $$;

-- Chooses the schema of the tables: public, if the current role can grant privileges on it, as the owner of the database can,
-- or if likestream_migrator can create tables in it, as every role can by default before Postgres 15. Otherwise it is the
-- schema likestream, which becomes the search path of the three roles in this database.
DO $$
DECLARE
    target text := 'public';
    name text;
    public_schema constant oid := to_regnamespace('public');
BEGIN
    IF has_schema_privilege(public_schema, 'CREATE WITH GRANT OPTION') THEN
        -- Before Postgres 15 every role could create tables in public and thereby shadow the real ones.
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    ELSIF has_schema_privilege('likestream_migrator', public_schema, 'CREATE') THEN
        IF has_schema_privilege('public', public_schema, 'CREATE') THEN
            RAISE WARNING 'cannot revoke CREATE on schema public from PUBLIC: % does not own the schema; let its owner run this file',
                current_user;
        END IF;
        RETURN;
    ELSE
        target := 'likestream';
        CREATE SCHEMA IF NOT EXISTS likestream;
        FOREACH name IN ARRAY ARRAY['likestream_migrator', 'likestream_consumer', 'likestream_reader'] LOOP
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = likestream', name, current_database());
        END LOOP;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO likestream_migrator, likestream_consumer, likestream_reader', target);
    -- likestream_migrator, for `likesctl migrate`: owns the tables of likestream.
    EXECUTE format('GRANT CREATE ON SCHEMA %I TO likestream_migrator', target);
END $$;

-- Hands over the tables of another owner, with the privileges that `likesctl migrate` grants:
-- likestream_consumer inserts likes, and cannot update or delete them or change the schema.
-- likestream_reader is for operators who use read-only commands of likesctl (verify, doctor) and `pending ack`. `likesctl
-- reprocess` stores likes and needs the role of the consumers.
DO $$
DECLARE
    tables constant oid[] := ARRAY(
        SELECT oid FROM pg_class
        WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p')
            -- Includes the tables of hash_partitions.sql.
            AND (relname IN ('likes', 'likes_before_hashing', 'likes_schema', 'likes_database', 'likes_watermarks',
                    'likes_incidents', 'refinery_schema_history')
                OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('public.likes')))
            AND relowner <> 'likestream_migrator'::regrole
    );
    handed_over oid;
    -- Always true for a superuser.
    is_member constant boolean := pg_has_role('likestream_migrator', 'USAGE');
BEGIN
    IF cardinality(tables) = 0 THEN
        RETURN;
    END IF;
    IF NOT is_member THEN
        GRANT likestream_migrator TO CURRENT_USER;
    END IF;
    FOREACH handed_over IN ARRAY tables LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO likestream_migrator', handed_over::regclass);
    END LOOP;
    IF to_regclass('public.likes') IS NOT NULL THEN
        GRANT SELECT, INSERT ON public.likes TO likestream_consumer;
        GRANT SELECT ON public.likes TO likestream_reader;
    END IF;
    IF to_regclass('public.likes_schema') IS NOT NULL THEN
        GRANT SELECT ON public.likes_schema TO likestream_consumer, likestream_reader;
    END IF;
    IF to_regclass('public.likes_incidents') IS NOT NULL THEN
        GRANT SELECT ON public.likes_database, public.likes_watermarks, public.likes_incidents
            TO likestream_consumer, likestream_reader;
        GRANT INSERT, UPDATE ON public.likes_watermarks, public.likes_incidents TO likestream_consumer;
    END IF;
    IF NOT is_member THEN
        REVOKE likestream_migrator FROM CURRENT_USER;
    END IF;
END $$;

COMMIT;
