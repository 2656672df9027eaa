package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
)

//go:embed *.sql
var files embed.FS

// migration is one numbered step of the schema.
type migration struct {
	version  int
	name     string
	up, down string // SQL
}

var fileName = regexp.MustCompile(`^(\d{4})_([a-z0-9_]+)\.(up|down)\.sql$`)

// bundled holds the migrations of this binary, by version, without holes.
var bundled = mustLoad(files)

// Latest is the version of the schema that this binary works with.
func Latest() int { return len(bundled) }

// mustLoad panics on a bad set of files: they are part of the binary, and a test loads them.
func mustLoad(fsys fs.FS) []migration {
	ms, err := load(fsys)
	if err != nil {
		panic(err)
	}
	return ms
}

func load(fsys fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, ".") // sorted: down before up, by number
	if err != nil {
		return nil, err
	}
	var ms []migration
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("migrations: %s is not named 0001_name.up.sql or .down.sql", e.Name())
		}
		version, _ := strconv.Atoi(m[1])
		sql, err := fs.ReadFile(fsys, e.Name())
		if err != nil {
			return nil, err
		}
		if m[3] == "down" {
			if version != len(ms)+1 {
				return nil, fmt.Errorf("migrations: %s has number %d, want %d", e.Name(), version, len(ms)+1)
			}
			ms = append(ms, migration{version: version, name: m[2], down: string(sql)})
			continue
		}
		if version != len(ms) || ms[version-1].name != m[2] || ms[version-1].up != "" {
			return nil, fmt.Errorf("migrations: %s has no down file of the same number and name", e.Name())
		}
		ms[version-1].up = string(sql)
	}
	for _, m := range ms {
		if m.up == "" || m.down == "" {
			return nil, fmt.Errorf("migrations: %04d_%s needs an up and a down file", m.version, m.name)
		}
	}
	return ms, nil
}
