package services

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// What a database's history can do: go back in time, or be continued by another server.

// Save keeps a copy of the data as it is now, under a name, for Restore. The server is restarted for it.
func (p *Postgres) Save(ctx context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(syscall.SIGINT)
	if err := p.copyData(ctx, p.data, p.saved(name)); err != nil {
		return err
	}
	return p.start(ctx)
}

// Restore goes back to what Save kept: the server is killed and started on a copy. Everything since then is gone, as
// after the restore of a backup. A name can be restored any number of times.
func (p *Postgres) Restore(ctx context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(syscall.SIGQUIT)
	if _, err := os.Stat(p.saved(name)); err != nil {
		return fmt.Errorf("restoring %q: it was not saved", name)
	}
	if err := os.RemoveAll(p.data); err != nil {
		return fmt.Errorf("restoring %q: %w", name, err)
	}
	if err := p.copyData(ctx, p.saved(name), p.data); err != nil {
		return err
	}
	return p.start(ctx)
}

func (p *Postgres) saved(name string) string { return filepath.Join(p.folder.path, "saved-"+name) }

// copyData copies a folder with its owners. cp, since it keeps them.
func (p *Postgres) copyData(ctx context.Context, from, to string) error {
	f := *p.folder
	f.cred = nil // the folder above is ours
	cmd := f.command(ctx, program{path: "/bin/cp"}, "-a", from, to)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copying data: %s", lastLine(string(out), err.Error()))
	}
	return nil
}

// Replica starts a second server that follows this one (asynchronous streaming) and answers reads. It has a folder of
// its own: close it, too.
func (p *Postgres) Replica(ctx context.Context) (*Postgres, error) {
	f, err := newFolder("postgres")
	if err != nil {
		return nil, err
	}
	r := &Postgres{program: p.program, folder: f, cfg: p.cfg, password: p.password}
	r.data, err = f.private("data")
	if err == nil {
		err = r.tool(ctx, "pg_basebackup", "--dbname="+p.URL("postgres"), "--pgdata="+r.data, "--write-recovery-conf",
			"--wal-method=stream", "--checkpoint=fast", "--no-sync")
	}
	if err == nil {
		err = onFreePort(func(port int) error {
			r.port = port
			return r.start(ctx)
		})
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("starting a replica: %w", err)
	}
	return r, nil
}

// Promote makes a replica a primary, on a new timeline. It returns when the server takes writes.
func (p *Postgres) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("promoting a replica: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var done bool
	if err := conn.QueryRow(ctx, "SELECT pg_promote()").Scan(&done); err != nil {
		return fmt.Errorf("promoting a replica: %w", err)
	}
	if !done {
		return fmt.Errorf("promoting a replica: it did not become primary in time")
	}
	return nil
}
