package services

import (
	"fmt"
	"os"
	"path/filepath"
)

// PostgresProgram is the path of another program that came with Postgres: pgbench, pg_basebackup, psql.
func PostgresProgram(name string) (string, error) {
	postgres, err := findPostgres()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(postgres.path), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s does not come with the Postgres in %s: install postgresql-contrib, or the package that holds %s",
			name, filepath.Dir(postgres.path), name)
	}
	return path, nil
}
