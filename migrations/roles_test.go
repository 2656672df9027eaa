package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/migrations"
)

var roles = []string{"writer", "worker", "reader", "operator"}

// decided says for each object of the schema who may do what with it, and nobody may do more. A new table or function has no
// line here, and so turns TestEveryObjectIsDecided red.
var decided = map[string]string{
	"outbox":           "writer: SELECT(id,partition,topic,born) INSERT(partition,topic,type,key,data,headers); worker: SELECT(id,partition,created_at); operator: SELECT",
	"outbox_id_seq":    "operator: SELECT",
	"journal":          "writer: SELECT(topic,offset,epoch); worker: SELECT; reader: SELECT; operator: SELECT",
	"journal_YYYYMMDD": "operator: SELECT", // queries go through the journal
	"topic":            "writer: SELECT; worker: SELECT; reader: SELECT; operator: SELECT",
	"partition":        "writer: SELECT(id,floor); worker: SELECT; reader: SELECT; operator: SELECT",
	"epoch":            "writer: SELECT(ordinal,name,born); worker: SELECT; reader: SELECT; operator: SELECT",
	"uncrashed":        "operator: SELECT",
	"parked":           "worker: SELECT INSERT UPDATE DELETE; operator: SELECT",
	"dead_letter":      "worker: SELECT INSERT UPDATE; operator: SELECT DELETE",
	"operation":        "writer: SELECT INSERT(scope,key,fingerprint) UPDATE(result,events); operator: SELECT",
	"revocation":       "reader: SELECT; operator: SELECT",
	"migration":        "writer: SELECT; worker: SELECT; reader: SELECT; operator: SELECT",

	"redrive":      "worker: SELECT UPDATE DELETE; operator: SELECT INSERT(topic,first,last,next,audit)",
	"audit":        "worker: SELECT(id) UPDATE(result,ended_at); operator: SELECT INSERT(who,action,target,detail,result,ended_at) UPDATE(result,ended_at)",
	"audit_id_seq": "operator: SELECT",
	"canary":       "operator: SELECT",

	"river_migration":           "writer: SELECT; worker: SELECT; reader: SELECT; operator: SELECT",
	"river_job":                 "worker: SELECT INSERT UPDATE DELETE; operator: SELECT",
	"river_job_id_seq":          "worker: USAGE; operator: SELECT",
	"river_leader":              "worker: SELECT INSERT UPDATE DELETE; operator: SELECT",
	"river_queue":               "worker: SELECT INSERT UPDATE DELETE; operator: SELECT",
	"river_notification_id_seq": "worker: USAGE; operator: SELECT",
	"river_notification":        "worker: SELECT INSERT UPDATE DELETE; operator: SELECT",

	"append(text,text,json,text,json)":                           "writer: EXECUTE",
	"partition_of(text)":                                         "writer: EXECUTE; operator: EXECUTE",
	"check_event(smallint,text,text,text,json,json)":             "writer: EXECUTE",
	"hash_rows(text)":                                            "writer: EXECUTE; operator: EXECUTE",
	"hash_rows_add(bigint,text)":                                 "",
	"hash_rows_combine(bigint,bigint)":                           "",
	"hash_rows_text(bigint)":                                     "",
	"begin_operation(text,text,bytea)":                           "writer: EXECUTE",
	"forget_operations(interval,integer)":                        "writer: EXECUTE; operator: EXECUTE",
	"append_fences(text[],text[],text[],text[],text[])":          "writer: EXECUTE",
	"change_access(text,text,text)":                              "",
	"revoke(text,text)":                                          "writer: EXECUTE; operator: EXECUTE",
	"restore(text,text)":                                         "writer: EXECUTE; operator: EXECUTE",
	"revoked(text,text)":                                         "writer: EXECUTE; reader: EXECUTE; operator: EXECUTE",
	"cursor_reason(text,text,bigint)":                            "writer: EXECUTE; reader: EXECUTE; operator: EXECUTE",
	"incarnation()":                                              "",
	"check_epoch()":                                              "worker: EXECUTE",
	"begin_epoch(text,text)":                                     "operator: EXECUTE",
	"sequence(smallint[],bigint[],integer,text,bigint[],bigint)": "worker: EXECUTE",
	"sequence(smallint,bigint,integer,text,bigint)":              "worker: EXECUTE",
	"begin_drain(smallint,bigint)":                               "worker: EXECUTE",
	"horizon()":                                                  "worker: EXECUTE",
	"ensure_leaves(integer)":                                     "worker: EXECUTE",
	"is_leaf(regclass)":                                          "",
	"leaf_is_published(regclass)":                                "",
	"doom_leaf(regclass)":                                        "worker: EXECUTE",
	"detach_leaf(regclass)":                                      "worker: EXECUTE",
	"drop_leaf(regclass)":                                        "worker: EXECUTE",
	"redrive_topics(text[],integer)":                             "operator: EXECUTE",
	"retry_republish(text)":                                      "operator: EXECUTE",
	"pause_partition(smallint,text,text)":                        "operator: EXECUTE",
	"resume_partition(smallint,timestamp with time zone)":        "operator: EXECUTE",
	"park_topic(text,text)":                                      "operator: EXECUTE",
	"sing()":                                                     "reader: EXECUTE",
	"settle_grants()":                                            "",
	"river_job_state_in_bitmask(bit,commitcast.river_job_state)": "worker: EXECUTE",
}

// rightsSQL lists, for each object of the schema and each role, what the role may do: with the whole of a table or with some
// of its columns.
const rightsSQL = `
WITH roles (role, n) AS (SELECT * FROM unnest($1::text[]) WITH ORDINALITY AS r (role, n)),
privileges (privilege, n) AS (
    SELECT * FROM unnest(ARRAY['USAGE', 'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'EXECUTE']) WITH ORDINALITY AS p (privilege, n)),
held AS (
    SELECT c.oid, regexp_replace(c.relname, '^journal_[0-9]{8}$', 'journal_YYYYMMDD') AS object, r.n AS nth_role, r.role, p.n AS nth, CASE
        WHEN c.relkind = 'S' THEN CASE WHEN p.privilege IN ('USAGE', 'SELECT', 'UPDATE')
            AND has_sequence_privilege('commitcast_' || r.role, c.oid, p.privilege) THEN p.privilege END
        WHEN p.privilege IN ('USAGE', 'EXECUTE') THEN NULL
        WHEN has_table_privilege('commitcast_' || r.role, c.oid, p.privilege) THEN p.privilege
        WHEN p.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') THEN (
            SELECT p.privilege || '(' || string_agg(a.attname, ',' ORDER BY a.attnum) || ')' FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND has_column_privilege('commitcast_' || r.role, c.oid, a.attnum, p.privilege)) END AS right
    FROM pg_class c, roles r, privileges p
    WHERE c.relnamespace = 'commitcast'::regnamespace AND c.relkind NOT IN ('i', 'I', 't', 'c')
    UNION ALL
    SELECT p.oid, regexp_replace(p.oid::regprocedure::text, '^commitcast\.', ''), r.n, r.role, 1,
        CASE WHEN has_function_privilege('commitcast_' || r.role, p.oid, 'EXECUTE') THEN 'EXECUTE' END
    FROM pg_proc p, roles r WHERE p.pronamespace = 'commitcast'::regnamespace
), each AS (
    SELECT DISTINCT object, nth_role, role, string_agg("right", ' ' ORDER BY nth) AS rights FROM held GROUP BY oid, object, nth_role, role
)
SELECT object, coalesce(string_agg(role || ': ' || rights, '; ' ORDER BY nth_role) FILTER (WHERE rights IS NOT NULL), '') FROM each GROUP BY object`

// undecided compares the rights in a database with what is decided, and returns the differences.
func undecided(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), rightsSQL, roles)
	if err != nil {
		t.Fatal(err)
	}
	var object, rights string
	held := make(map[string]string)
	if _, err := pgx.ForEachRow(rows, []any{&object, &rights}, func() error { held[object] = rights; return nil }); err != nil {
		t.Fatal(err)
	}
	var differ []string
	for object, rights := range held {
		if want, ok := decided[object]; !ok {
			differ = append(differ, fmt.Sprintf("%s: nobody has decided who may use it; now %q", object, rights))
		} else if rights != want {
			differ = append(differ, fmt.Sprintf("%s: %q, want %q", object, rights, want))
		}
	}
	for object := range decided {
		if _, ok := held[object]; !ok {
			differ = append(differ, object+": is not there")
		}
	}
	slices.Sort(differ)
	return differ
}

// publicSQL lists what everybody may do in the schema.
const publicSQL = `
SELECT coalesce(string_agg(object || ' ' || privilege_type, ', '), '') FROM (
    SELECT nspname::text AS object, (aclexplode(coalesce(nspacl, acldefault('n', nspowner)))).* FROM pg_namespace WHERE nspname = 'commitcast'
    UNION ALL SELECT oid::regclass::text, (aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))).*
        FROM pg_class WHERE relnamespace = 'commitcast'::regnamespace
    UNION ALL SELECT attrelid::regclass::text || '.' || attname, (aclexplode(attacl)).*
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE relnamespace = 'commitcast'::regnamespace
    UNION ALL SELECT oid::regprocedure::text, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
        FROM pg_proc WHERE pronamespace = 'commitcast'::regnamespace
) a WHERE grantee = 0`

// Who may do what is decided for every table, sequence and function of the schema, and the public may do nothing.
func TestEveryObjectIsDecided(t *testing.T) {
	db := migrated(t)
	conn := connect(t, db)
	exec(t, db, `SELECT commitcast.ensure_leaves(30)`) // leaves that come later are as those that are there
	for _, difference := range undecided(t, conn) {
		t.Error(difference)
	}
	if public := one[string](t, conn, publicSQL); public != "" {
		t.Errorf("everybody may: %s", public)
	}
	loose := one[string](t, conn, `SELECT coalesce(string_agg(oid::regprocedure::text, ', '), '') FROM pg_proc
		WHERE pronamespace = 'commitcast'::regnamespace AND prosecdef AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(proconfig, '{}'))`)
	if loose != "" {
		t.Errorf("run as their owner, and look for names where the caller says: %s", loose)
	}

	// What has no decision is seen, and is nobody's to write to; the next migration takes it from the public.
	exec(t, db, `CREATE TABLE commitcast.later (a int); CREATE FUNCTION commitcast.later() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	up(t, db)
	want := []string{`later(): nobody has decided who may use it; now ""`, `later: nobody has decided who may use it; now "operator: SELECT"`}
	if got := undecided(t, conn); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if public := one[string](t, conn, publicSQL); public != "" {
		t.Errorf("everybody may, after a later migration: %s", public)
	}

	// Down to before and up again is the same as up.
	exec(t, db, `DROP TABLE commitcast.later; DROP FUNCTION commitcast.later()`)
	before := one[string](t, conn, schemaSQL)
	if err := migrations.Down(t.Context(), postgres.URL(db), 2, nil); err != nil {
		t.Fatal(err)
	}
	up(t, db)
	if after := one[string](t, conn, schemaSQL); after != before {
		t.Errorf("another schema:\n%s\n---\n%s", after, before)
	}
	for _, difference := range undecided(t, conn) {
		t.Errorf("after going down and up: %s", difference)
	}
}

// as connects as somebody who has one role and nothing else.
func as(t *testing.T, db, role string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), testkit.As(t, postgres.URL(db), role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// code is the SQLSTATE of a statement that is undone; "" if it works.
func code(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(t.Context(), sql, args...)
	var pg *pgconn.PgError
	if err != nil && !errors.As(err, &pg) {
		t.Fatalf("%s: %v", sql, err)
	}
	if pg != nil {
		return pg.Code
	}
	return ""
}

const denied = "42501"

// Every role tries every statement on every table, and every function: what is not decided is refused, what is, works.
func TestRolesTryEverything(t *testing.T) {
	db := migrated(t)
	admin := connect(t, db)
	tables, err := admin.Query(t.Context(), `SELECT relname, (SELECT min(attname) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND attidentity = '')
		FROM pg_class c WHERE relnamespace = 'commitcast'::regnamespace AND relkind IN ('r', 'p', 'v') ORDER BY relname`)
	if err != nil {
		t.Fatal(err)
	}
	columns := make(map[string]string)
	var table, column string
	if _, err := pgx.ForEachRow(tables, []any{&table, &column}, func() error { columns[table] = column; return nil }); err != nil {
		t.Fatal(err)
	}
	functions, err := admin.Query(t.Context(), `SELECT regexp_replace(p.oid::regprocedure::text, '^commitcast\.', ''),
		oid::regproc || '(' || (SELECT coalesce(string_agg('NULL::' || format_type(a, NULL), ', '), '') FROM unnest(p.proargtypes) a) || ')'
		FROM pg_proc p WHERE pronamespace = 'commitcast'::regnamespace AND provolatile <> 'i'`) // those are done when a statement is planned
	if err != nil {
		t.Fatal(err)
	}
	calls := make(map[string]string)
	var function, call string
	if _, err := pgx.ForEachRow(functions, []any{&function, &call}, func() error { calls[function] = call; return nil }); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, role := range roles {
		conn := as(t, db, role)
		may := func(object, privilege string) (whole bool) {
			for _, line := range strings.Split(decided[object], "; ") {
				if held, ok := strings.CutPrefix(line, role+": "); ok {
					return slices.Contains(strings.Fields(held), privilege)
				}
			}
			return false
		}
		for table, column := range columns {
			object := regexp.MustCompile(`^journal_\d{8}$`).ReplaceAllString(table, "journal_YYYYMMDD")
			for privilege, sql := range map[string]string{
				"SELECT":   `SELECT * FROM commitcast.%[1]s LIMIT 1`,
				"INSERT":   `INSERT INTO commitcast.%[1]s DEFAULT VALUES`,
				"UPDATE":   `UPDATE commitcast.%[1]s SET %[2]q = DEFAULT WHERE false`,
				"DELETE":   `DELETE FROM commitcast.%[1]s WHERE false`,
				"TRUNCATE": `TRUNCATE commitcast.%[1]s`,
				"TRIGGER":  `CREATE TRIGGER t BEFORE INSERT ON commitcast.%[1]s EXECUTE FUNCTION suppress_redundant_updates_trigger()`,
				"OWNER":    `ALTER TABLE commitcast.%[1]s ADD COLUMN mine integer`,
				"DROP":     `DROP TABLE commitcast.%[1]s`,
			} {
				tried++
				got := code(t, conn, fmt.Sprintf(sql, table, column))
				if partly := strings.Contains(decided[object], role+": ") && privilege == "INSERT" && strings.Contains(decided[object], "INSERT("); partly {
					continue // of some columns: DEFAULT VALUES needs any of them
				}
				if may(object, privilege) == (got == denied) {
					t.Errorf("%s of %s by %s: %q", privilege, table, role, got)
				}
			}
		}
		for function, call := range calls {
			tried++
			if got := code(t, conn, "SELECT "+call); may(function, "EXECUTE") == (got == denied) {
				t.Errorf("%s by %s: %q", function, role, got)
			}
		}
		for _, sql := range []string{`CREATE TABLE commitcast.mine (a int)`, `CREATE FUNCTION commitcast.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
			`DROP SCHEMA commitcast CASCADE`, `CREATE ROLE mine`, `ALTER ROLE postgres SET work_mem = 1`, `SET ROLE postgres`, `GRANT commitcast_worker TO CURRENT_USER`,
			`SELECT pg_read_file('postgresql.conf')`, `COPY (SELECT 1) TO PROGRAM 'true'`} {
			if got := code(t, conn, sql); got != denied {
				t.Errorf("%s by %s: %q", sql, role, got)
			}
		}
	}
	t.Logf("%d statements", tried)
}

// Some that are less plain: parts of tables, and functions of the owner that are given what is not theirs.
func TestRolesStayInTheirPlace(t *testing.T) {
	db := migrated(t)
	exec(t, db, `CREATE TABLE public.bank (topic text, "offset" bigint, partition smallint, seq bigint); COMMENT ON TABLE public.bank IS 'commitcast: past retention';
		CREATE SCHEMA journal_20200101; CREATE TABLE journal_20200101.journal_20200101 (LIKE public.bank); GRANT USAGE ON SCHEMA journal_20200101 TO PUBLIC`)
	old := "journal_20200101"
	exec(t, db, `CREATE TABLE commitcast.`+old+` (LIKE commitcast.journal);
		ALTER TABLE commitcast.journal ATTACH PARTITION commitcast.`+old+` FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')`)
	today := value[string](t, db, `SELECT 'commitcast.journal_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	yesterday := value[string](t, db, `SELECT 'commitcast.journal_' || to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')`)
	writer, worker, reader, operator := as(t, db, "writer"), as(t, db, "worker"), as(t, db, "reader"), as(t, db, "operator")
	const row = `INSERT INTO commitcast.outbox (partition, topic, type, data) VALUES `
	for _, c := range []struct {
		conn      *pgx.Conn
		sql, want string
	}{
		{writer, `SELECT commitcast.append('a', 'b', '1')`, ""},
		{writer, row + `(commitcast.partition_of('a'), 'a', 'b', '1') RETURNING id`, ""},
		{writer, row + `((commitcast.partition_of('a') + 1) % 32, 'a', 'b', '1')`, "22023"},
		{writer, row + `(commitcast.partition_of('a'), 'a', 'b', '1') RETURNING data`, denied},
		{writer, `INSERT INTO commitcast.outbox (partition, topic, type, data, created_at) VALUES (commitcast.partition_of('a'), 'a', 'b', '1', now())`, denied},
		{writer, `INSERT INTO commitcast.outbox (partition, topic, type, data, born) VALUES (commitcast.partition_of('a'), 'a', 'b', '1', now())`, denied},
		{writer, `INSERT INTO commitcast.outbox (id, partition, topic, type, data) OVERRIDING SYSTEM VALUE VALUES (1, commitcast.partition_of('a'), 'a', 'b', '1')`, denied},
		{writer, `SELECT id, topic FROM commitcast.outbox`, ""},
		{writer, `SELECT data FROM commitcast.outbox`, denied},
		{writer, `SELECT data FROM commitcast.journal`, denied},
		{writer, `SELECT * FROM commitcast.` + old, denied},
		{writer, `SELECT nextval('commitcast.outbox_id_seq')`, denied},
		{writer, `SELECT setval('commitcast.outbox_id_seq', 1)`, denied},
		{writer, `SELECT commitcast.hash_rows('x')`, ""},
		{writer, `SELECT pg_notify('commitcast_outbox', '1')`, ""},
		{worker, `UPDATE commitcast.partition SET published = 0`, denied},
		{worker, `SELECT data FROM commitcast.outbox`, denied},
		{worker, `LOCK TABLE commitcast.epoch IN SHARE ROW EXCLUSIVE MODE`, denied},
		{worker, `LISTEN commitcast_outbox`, ""},
		{worker, `SELECT commitcast.doom_leaf('public.bank')`, "22023"},
		{worker, `SELECT commitcast.detach_leaf('public.bank')`, "22023"},
		{worker, `SELECT commitcast.drop_leaf('public.bank')`, "22023"},
		{worker, `SELECT commitcast.doom_leaf('journal_20200101.journal_20200101')`, "22023"},
		{worker, `SELECT commitcast.drop_leaf('journal_20200101.journal_20200101')`, "22023"},
		{worker, `SELECT commitcast.doom_leaf('commitcast.outbox')`, "22023"},
		{worker, `SELECT commitcast.doom_leaf('commitcast.journal')`, "22023"},
		{worker, `SELECT commitcast.doom_leaf('` + today + `')`, "22023"},
		{worker, `SELECT commitcast.doom_leaf('` + yesterday + `')`, "22023"},
		{worker, `SELECT commitcast.detach_leaf('commitcast.` + old + `')`, "22023"}, // not marked
		{worker, `SELECT commitcast.drop_leaf('commitcast.` + old + `')`, "22023"},
		{worker, `COMMENT ON TABLE commitcast.` + old + ` IS 'commitcast: past retention'`, denied},
		{worker, `SELECT commitcast.doom_leaf('commitcast.` + old + `'), commitcast.drop_leaf('commitcast.` + old + `')`, "22023"}, // still attached
		{worker, `SELECT commitcast.doom_leaf('commitcast.` + old + `'); SELECT commitcast.detach_leaf('commitcast.` + old + `'); SELECT commitcast.drop_leaf('commitcast.` + old + `')`, ""},
		{reader, `SELECT * FROM commitcast.journal`, ""},
		{reader, `SELECT id FROM commitcast.outbox`, denied},
		{reader, `SELECT commitcast.cursor_reason('a', '1-00000000', 1)`, ""},
		{reader, `SELECT commitcast.append('a', 'b', '1')`, denied},
		{operator, `SELECT data FROM commitcast.outbox`, ""},
		{operator, `SELECT * FROM commitcast.` + old, ""},
		{operator, `SELECT commitcast.redrive_topics()`, ""},
		{operator, `SELECT commitcast.begin_epoch(NULL, 'by hand')`, ""},
		{operator, `UPDATE commitcast.parked SET died_at = NULL`, denied},
		{operator, `DELETE FROM commitcast.dead_letter`, ""}, // after a look at them,
	} {
		if got := code(t, c.conn, c.sql); got != c.want {
			t.Errorf("%s by %s: %q, want %q", c.sql, one[string](t, c.conn, `SELECT current_user`), got, c.want)
		}
	}

	// Behind a reader of the journal nobody waits, and so nobody behind them.
	exec(t, db, `SELECT commitcast.doom_leaf('commitcast.`+old+`')`)
	for _, sql := range []string{`SELECT 1 FROM commitcast.journal`, `SELECT 1 FROM commitcast.` + old} {
		tx, err := connect(t, db).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		if _, err := worker.Exec(t.Context(), `SET statement_timeout = '5s'`); err != nil {
			t.Fatal(err)
		}
		if one[bool](t, worker, `SELECT commitcast.detach_leaf('commitcast.`+old+`')`) {
			t.Errorf("detached under %s", sql)
		}
		tx.Rollback(t.Context())
	}
	testkit.Eventually(t, 20*time.Second, func() bool {
		return one[bool](t, worker, `SELECT commitcast.detach_leaf('commitcast.`+old+`')`)
	}, "detached when the readers are gone")
}

// A reader may be led to a replica.
func TestReaderOfAReplica(t *testing.T) {
	db := migrated(t)
	login := testkit.As(t, postgres.URL(db), "reader")
	replica, err := postgres.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close()
	u, err := url.Parse(login)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = replica.Addr()
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := migrations.Check(t.Context(), conn); err != nil {
		t.Error(err)
	}
	if got := code(t, conn, `SELECT seq, commitcast.cursor_reason('a', '1-00000000', 1) FROM commitcast.partition, commitcast.epoch, (SELECT count(*) FROM commitcast.journal) j`); got != "" {
		t.Error(got)
	}
}

// Roles belong to the cluster. Who may not make them is told which statements an administrator has to run; many databases
// may make them at once; and to go down in one takes nothing from another.
func TestRolesOfTheCluster(t *testing.T) {
	server, err := services.StartPostgres(t.Context(), services.PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	admin, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	run := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	made := func() []string {
		t.Helper()
		return one[[]string](t, admin, `SELECT coalesce(array_agg(rolname ORDER BY rolname), '{}') FROM pg_roles WHERE rolname LIKE 'commitcast\_%'`)
	}
	run(`CREATE ROLE weak LOGIN PASSWORD 'weak'`)
	run(`CREATE ROLE commitcast_reader NOLOGIN`) // half of it is there already
	run(`CREATE DATABASE weak OWNER weak`)
	u, err := url.Parse(server.URL("weak"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("weak", "weak")
	err = migrations.Up(t.Context(), u.String(), nil)
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Fatalf("%v", err)
	}
	t.Log(err)
	statements := regexp.MustCompile(`CREATE ROLE \w+ NOLOGIN;`).FindAllString(err.Error(), -1)
	if want := []string{"CREATE ROLE commitcast_writer NOLOGIN;", "CREATE ROLE commitcast_worker NOLOGIN;", "CREATE ROLE commitcast_operator NOLOGIN;"}; !slices.Equal(statements, want) {
		t.Fatalf("%v: statements %q, want %q", err, statements, want)
	}
	for _, sql := range statements {
		run(sql)
	}
	if err := migrations.Up(t.Context(), u.String(), nil); err != nil {
		t.Fatalf("after the administrator's statements: %v", err)
	}
	if err := migrations.Down(t.Context(), u.String(), 0, nil); err != nil {
		t.Fatal(err)
	}
	all := []string{"commitcast_operator", "commitcast_reader", "commitcast_worker", "commitcast_writer"}
	if got := made(); !slices.Equal(got, all) {
		t.Errorf("after down: %v", got)
	}
	run(`DROP ROLE commitcast_operator, commitcast_reader, commitcast_worker, commitcast_writer`) // nothing depends on them

	const many = 6
	for i := range many {
		run(fmt.Sprintf(`CREATE DATABASE many_%d`, i))
	}
	var wg sync.WaitGroup
	errs := make([]error, many)
	for i := range many {
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), server.URL(fmt.Sprintf("many_%d", i)), nil) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := made(); !slices.Equal(got, all) {
		t.Errorf("made by many at once: %v", got)
	}
	if err := migrations.Down(t.Context(), server.URL("many_0"), 0, nil); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), testkit.As(t, server.URL("many_1"), "writer"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	one[int64](t, conn, `SELECT commitcast.append('a', 'b', '1')`)
}
