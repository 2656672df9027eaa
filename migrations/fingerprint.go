package migrations

import (
	"crypto/sha256"
	"fmt"
	"io"
)

// Fingerprint names what Up makes of an empty database, Commitcast's and River's schema, in 16 hexadecimal digits. It
// changes with any of the SQL files and with River's version; tests name their template databases by it.
func Fingerprint() (string, error) {
	river, err := riverLatest()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, m := range bundled {
		fmt.Fprintf(h, "%d %s %q\n", m.version, m.name, m.up)
	}
	io.WriteString(h, fmt.Sprint(river))
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
