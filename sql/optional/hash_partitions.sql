-- Turns likes into a table of hash partitions while consumers write to it. Optional, and not a migration: docs/postgres.md
-- explains when it is worth it, and which locks each step takes.
--
-- Run it as the owner of likes, directly on Postgres, step by step or as a whole:
--   psql --set ON_ERROR_STOP=1 --file sql/optional/hash_partitions.sql
-- From step 2 to step 4 only consumers may change likes. Recreate triggers and further indexes yourself.
-- To abort before step 4: DROP FUNCTION IF EXISTS likes_to_hashed CASCADE; DROP TABLE likes_hashed;

-- Step 1: create the new table with its partitions and the privileges of the old one. Blocks nothing.
BEGIN;
CREATE TABLE likes_hashed (
    LIKE likes INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (post_id, user_id)
) PARTITION BY HASH (post_id);
DO $$
DECLARE
    partitions constant integer := 8;
    granted record;
BEGIN
    FOR n IN 0 .. partitions - 1 LOOP
        EXECUTE format('CREATE TABLE likes_hashed_%s PARTITION OF likes_hashed
                        FOR VALUES WITH (MODULUS %s, REMAINDER %s)', n, partitions, n);
    END LOOP;
    FOR granted IN
        SELECT acl.privilege_type, CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS grantee
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE oid = 'likes'::regclass AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON likes_hashed TO %s', granted.privilege_type, granted.grantee);
    END LOOP;
END $$;
COMMIT;

-- Step 2: store new likes in both tables. Waits for running transactions of consumers, and new ones wait for it:
-- milliseconds.
BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE FUNCTION likes_to_hashed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO likes_hashed (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM inserted
    ON CONFLICT (user_id, post_id) DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER likes_to_hashed AFTER INSERT ON likes REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION likes_to_hashed();
COMMIT;

-- Step 3: copy the existing likes. Takes long and blocks nothing. Can be repeated.
INSERT INTO likes_hashed (user_id, post_id, created_at) SELECT user_id, post_id, created_at FROM likes
ON CONFLICT (user_id, post_id) DO NOTHING;
ANALYZE likes_hashed;

-- Step 4: verify that the new table has every like, then swap the names. The check takes long and blocks nothing. The swap
-- waits for running transactions of consumers, and new ones wait for it: milliseconds.
BEGIN;
SET LOCAL lock_timeout = '5s';
DO $$
BEGIN
    IF EXISTS (SELECT FROM likes LEFT JOIN likes_hashed USING (post_id, user_id) WHERE likes_hashed.post_id IS NULL) THEN
        RAISE 'likes_hashed lacks likes: repeat step 3';
    END IF;
END $$;
DROP TRIGGER likes_to_hashed ON likes;
DROP FUNCTION likes_to_hashed();
ALTER TABLE likes RENAME TO likes_before_hashing;
ALTER TABLE likes_before_hashing RENAME CONSTRAINT likes_pkey TO likes_before_hashing_pkey;
ALTER TABLE likes_hashed RENAME TO likes;
ALTER TABLE likes RENAME CONSTRAINT likes_hashed_pkey TO likes_pkey;
COMMIT;

-- When everything works: DROP TABLE likes_before_hashing;
