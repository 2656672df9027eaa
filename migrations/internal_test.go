package migrations

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"
)

func TestServerProblem(t *testing.T) {
	for _, c := range []struct {
		version  int
		encoding string
		replica  bool
		want     string
	}{
		{130999, "UTF8", false, "needs 14 or later"},
		{140000, "SQL_ASCII", false, "encoding"},
		{140000, "UTF8", true, "replica"},
		{140000, "UTF8", false, ""},
	} {
		err := serverProblem(c.version, "x", c.encoding, c.replica)
		if (c.want == "") != (err == nil) || err != nil && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestLoadRefusesBadSets(t *testing.T) {
	for name, files := range map[string][]string{
		"no down": {"0001_a.up.sql"},
		"no up":   {"0001_a.down.sql"},
		"hole":    {"0001_a.up.sql", "0001_a.down.sql", "0003_c.up.sql", "0003_c.down.sql"},
		"twins":   {"0001_a.up.sql", "0001_a.down.sql", "0001_b.up.sql", "0001_b.down.sql"},
		"name":    {"1_a.up.sql"},
	} {
		fs := fstest.MapFS{}
		for _, f := range files {
			fs[f] = &fstest.MapFile{Data: []byte("SELECT 1")}
		}
		if ms, err := load(fs); err == nil {
			t.Errorf("%s: loaded %v", name, ms)
		}
	}
}
