package services

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

//go:embed keeper.sh
var keeperScript string

// keeperTimeout is how long the keeper may take to tidy up: longer than it waits for a server to end.
const keeperTimeout = 15 * time.Second

// folder is a temporary folder with all that one server owns. A shell, the keeper, sees to it that the folder and the
// processes are gone when the owner is.
type folder struct {
	path string
	cred *syscall.Credential // the user that servers run as, nil = ours
	host Host                // where its servers run, nil = here

	keeper     *exec.Cmd
	keeperStop io.Closer
	keeperDone chan struct{}
}

func newFolder(name string) (*folder, error) {
	f := &folder{keeperDone: make(chan struct{})}
	parent := os.TempDir()
	if os.Geteuid() == 0 {
		cred, err := serverUser()
		if err != nil {
			return nil, err
		}
		f.cred = cred
		if !traversable(parent) {
			parent = "/tmp"
		}
	}
	path, err := os.MkdirTemp(parent, "commitcast-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for a private %s: %w", name, err)
	}
	f.path = path
	if err := f.prepare(); err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("preparing %s: %w", path, err)
	}
	return f, nil
}

func (f *folder) prepare() error {
	if err := os.Chmod(f.path, 0o711); err != nil { // another user goes through to its own part
		return err
	}
	if err := os.Mkdir(f.pids(), 0o700); err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", keeperScript, "commitcast-keeper", f.path)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us, not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	f.keeper, f.keeperStop = cmd, in
	go func() { // owned by the folder: ends with the keeper, for which remove waits
		cmd.Wait()
		close(f.keeperDone)
	}()
	return nil
}

// ip is the address of its servers.
func (f *folder) ip() string {
	if f.host != nil {
		return f.host.IP()
	}
	return "127.0.0.1"
}

func (f *folder) pids() string { return filepath.Join(f.path, "pids") }

// private makes a folder in the folder that belongs to the servers' user alone, and returns its path.
func (f *folder) private(name string) (string, error) {
	path := filepath.Join(f.path, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	return path, f.give(path)
}

// give makes the servers' user the owner of a file.
func (f *folder) give(path string) error {
	if f.cred == nil {
		return nil
	}
	return os.Chown(path, int(f.cred.Uid), int(f.cred.Gid))
}

// secret writes a file that only the servers' user can read, and returns its path.
func (f *folder) secret(name string, content []byte) (string, error) {
	path := filepath.Join(f.path, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", err
	}
	return path, f.give(path)
}

// TLS is what a private server shows to its clients, and asks them for. All in PEM.
type TLS struct {
	Certificate, Key []byte
	ClientCA         []byte // if set, clients must show a certificate of this authority
}

// files writes them for the server.
func (t *TLS) files(f *folder) (certificate, key, clientCA string, err error) {
	if certificate, err = f.secret("tls.crt", t.Certificate); err == nil {
		key, err = f.secret("tls.key", t.Key)
	}
	if err == nil && t.ClientCA != nil {
		clientCA, err = f.secret("client.crt", t.ClientCA)
	}
	return certificate, key, clientCA, err
}

// remove removes the folder, and ends what still runs in it.
func (f *folder) remove() {
	f.keeperStop.Close()
	select {
	case <-f.keeperDone:
	case <-time.After(keeperTimeout):
		f.keeper.Process.Kill()
		<-f.keeperDone
	}
	os.RemoveAll(f.path)
}

// serverUser is who runs servers when we are root: Postgres refuses root, and nothing is gained by it.
func serverUser() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("Postgres does not run as root, and there is neither a user postgres nor nobody: run as another user, or set DATABASE_URL and REDIS_URL")
}

// traversable says whether any user can reach what is in a folder.
func traversable(path string) bool {
	path, err := filepath.Abs(path)
	for ; err == nil; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		if path == filepath.Dir(path) {
			return true
		}
	}
	return false
}
