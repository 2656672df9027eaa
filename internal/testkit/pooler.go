package testkit

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/commitcast/commitcast/internal/services"
)

// Pooler starts PgBouncer before the server of a database and returns the database's URL by way of it. settings are lines of
// its section [pgbouncer], beside pool_mode = transaction; the login of the URL is the only one that it knows.
func Pooler(t testing.TB, databaseURL, settings string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := services.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	conf := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = plain
auth_file = FOLDER/users
pool_mode = transaction
%s
`, u.Hostname(), u.Port(), port, settings)
	u.Host = fmt.Sprint("127.0.0.1:", port)
	p, err := services.StartConfigured(t.Context(), nil, "pgbouncer", u.Host,
		[2]string{"pgbouncer.ini", conf}, [2]string{"users", fmt.Sprintf("%q %q\n", u.User.Username(), password)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("PgBouncer: ", p.Log())
		}
		p.Close()
	})
	return u.String()
}
