-- What the specs share: a publisher in another database of the same server, so
-- that sessions of isolationtester (which all connect to one database) meet a
-- real apply worker.  Each spec loads this file in its first setup block; the
-- suite's configuration says where it is (krahodb_test.helpers).
--
-- The slot is made before the subscription: creating it inside CREATE
-- SUBSCRIPTION would wait for the command's own transaction.
--
-- Whoever waits here waits for a condition, with a limit.

CREATE EXTENSION IF NOT EXISTS dblink;

CREATE OR REPLACE FUNCTION conninfo(dbname text) RETURNS text
LANGUAGE sql AS $$
	SELECT format('dbname=%s port=%s host=%s', dbname, current_setting('port'),
				  split_part(current_setting('unix_socket_directories'), ',', 1))
$$;

-- Run SQL on the publisher; several statements are one transaction.
CREATE OR REPLACE FUNCTION pub(command text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM dblink_exec(conninfo('isolation_publisher'), command);
END $$;

-- Wait until the query says true.
CREATE OR REPLACE PROCEDURE wait_for(what text, query text)
LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '30 s';
	done boolean;
BEGIN
	LOOP
		PERFORM pg_stat_clear_snapshot();
		EXECUTE query INTO done;
		EXIT WHEN done;
		IF clock_timestamp() > deadline THEN
			RAISE EXCEPTION 'timed out waiting until %', what;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;

-- Wait until the apply worker waits for a lock.
CREATE OR REPLACE FUNCTION apply_waits() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_for('the apply worker waits for a lock', $q$
		SELECT EXISTS (SELECT FROM pg_stat_activity a JOIN pg_stat_subscription s USING (pid)
					   WHERE s.subname = 'sub' AND a.wait_event_type = 'Lock')$q$);
END $$;

-- Wait until the pid that the worker of "sub" had is no longer its worker's.
CREATE OR REPLACE FUNCTION apply_restarted(old_pid int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_for('the apply worker has been started again', format(
		'SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = ''sub'' AND pid <> %s)', old_pid));
END $$;

-- Wait until the session of that application_name waits for a lock of another session.
CREATE OR REPLACE FUNCTION session_waits(name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_for('session ' || name || ' waits for a lock', format($q$
		SELECT EXISTS (SELECT FROM pg_stat_activity
					   WHERE application_name = %L AND wait_event_type = 'Lock')$q$, name));
END $$;

-- Wait until everything that the publisher has committed is applied.
CREATE OR REPLACE FUNCTION applied() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_for('changes are applied', format($q$
		SELECT EXISTS (SELECT FROM pg_stat_replication
					   WHERE application_name = 'sub' AND replay_lsn >= %L)$q$,
		pg_current_wal_insert_lsn()));
END $$;

-- The same tables here and on the publisher, and a subscription "sub" to them.
-- rows is run on the publisher and replicated.
CREATE OR REPLACE PROCEDURE make_pair(tables text, rows text, options text)
LANGUAGE plpgsql AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_database WHERE datname = 'isolation_publisher') THEN
		PERFORM dblink_exec(conninfo('postgres'), 'CREATE DATABASE isolation_publisher');
	END IF;
	PERFORM pub(tables || '; CREATE PUBLICATION pub FOR ALL TABLES');
	PERFORM * FROM dblink(conninfo('isolation_publisher'),
		'SELECT slot_name FROM pg_create_logical_replication_slot(''sub'', ''krahodb_output'')') AS t(name text);
	EXECUTE tables;
	EXECUTE format('CREATE SUBSCRIPTION sub CONNECTION %L PUBLICATION pub WITH (create_slot = false, copy_data = false%s)',
		conninfo('isolation_publisher') || ' application_name=sub', options);
	COMMIT;
	IF rows <> '' THEN
		PERFORM pub(rows);
	END IF;
	PERFORM applied();
END $$;

CREATE OR REPLACE PROCEDURE drop_pair()
LANGUAGE plpgsql AS $$
DECLARE
	drop_tables text := $q$
		DO $d$
		DECLARE name text;
		BEGIN
			FOR name IN SELECT oid::regclass FROM pg_class
				WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
			LOOP
				EXECUTE 'DROP TABLE ' || name;
			END LOOP;
		END $d$ $q$;
BEGIN
	ALTER SUBSCRIPTION sub DISABLE;
	ALTER SUBSCRIPTION sub SET (slot_name = NONE);
	DROP SUBSCRIPTION sub;
	COMMIT;
	CALL wait_for('the slot is free', 'SELECT NOT active FROM pg_replication_slots WHERE slot_name = ''sub''');
	PERFORM pg_drop_replication_slot('sub');
	PERFORM pub('DROP PUBLICATION pub; ' || drop_tables);
	EXECUTE drop_tables;
END $$;
