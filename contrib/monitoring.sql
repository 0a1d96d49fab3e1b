-- What to look at on a KrahoDB node, in each database that replicates.  psql runs
-- the whole file; monitoring takes single queries.  The last three need the extension
-- krahodb.

\echo Subscriptions: does each one run, and when did the publisher say something?
-- Alert: enabled and not running for longer than a minute; silent for longer than
-- wal_receiver_timeout; errors that increase.
SELECT s.subname AS subscription, s.subenabled AS enabled, w.pid IS NOT NULL AS running,
	pg_catalog.now() - w.last_msg_receipt_time AS silent_for, w.latest_end_lsn AS received,
	e.apply_error_count AS apply_errors, e.sync_error_count AS sync_errors
FROM pg_catalog.pg_subscription s
LEFT JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
LEFT JOIN pg_catalog.pg_stat_subscription_stats e ON e.subid = s.oid
WHERE s.subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
ORDER BY 1;

\echo Tables that are not synchronised yet (i, d, f, s), with the rows copied so far
SELECT s.subname AS subscription, r.srrelid::pg_catalog.regclass AS "table", r.srsubstate AS state,
	c.tuples_processed AS rows_copied
FROM pg_catalog.pg_subscription_rel r
JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_stat_progress_copy c ON c.relid = r.srrelid AND c.datid = s.subdbid
WHERE r.srsubstate <> 'r'
ORDER BY 1, 2;

\echo Subscribers of this node: who is away, how much WAL is kept for whom, how far behind is each?
-- Alert: not active for longer than a restart takes; wal_status other than reserved
-- and extended; kept_bytes near the free disk space or max_slot_wal_keep_size.
SELECT s.slot_name, s.plugin, s.active, s.wal_status,
	pg_catalog.pg_wal_lsn_diff(l.lsn, s.restart_lsn) AS kept_bytes,
	pg_catalog.pg_wal_lsn_diff(l.lsn, s.confirmed_flush_lsn) AS behind_bytes,
	r.replay_lag
FROM pg_catalog.pg_replication_slots s
CROSS JOIN (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
	ELSE pg_catalog.pg_current_wal_lsn() END AS lsn) l
LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
WHERE s.slot_type = 'logical'
ORDER BY 1;

\echo Origins: which id is which subscription, and up to where has it been applied?
SELECT o.roident AS id, o.roname AS origin, s.subname AS subscription, p.remote_lsn
FROM pg_catalog.pg_replication_origin o
LEFT JOIN pg_catalog.pg_subscription s ON o.roname = 'pg_' || s.oid
LEFT JOIN pg_catalog.pg_replication_origin_status p ON p.local_id = o.roident
ORDER BY 1;

\echo The clock: waits that increase are the first sign of clocks that are apart
SELECT * FROM krahodb.clock;

\echo Retention: until when has everything come everywhere, and who is waited for?
-- Alert: a state other than ok and applying that lasts, as deleted rows pile up
-- meanwhile; stale: the subscription takes no changes any more.
SELECT database, subscription, state, since, lag, oldest_kept_age, reason FROM krahodb.horizon ORDER BY 1, 2;

\echo Conflicts since the server started
SELECT * FROM krahodb.conflict_stats ORDER BY 1, 2, 3, 4;

-- Without the extension they are in the server log:
--	grep -oE 'conflict=[a-z_]+, resolution=[a-z_]+, [a-z ]+' logfile | sort | uniq -c
