package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// workerArg makes this program a worker instead of the demo. Hidden: the demo starts itself with it.
	workerArg = "worker"
	// workerEndsWithin is how long a worker may take to end in good order before it is killed.
	workerEndsWithin = 5 * time.Second
)

// runningWorker is one life of the worker.
type runningWorker struct {
	pid  int                // 0: a goroutine of this process
	end  func(violent bool) // asks it to end; done closes when it has
	done chan struct{}
	err  error // why it ended by itself; valid after done
}

// workerControl starts and stops the worker, over and over. Safe for concurrent use.
type workerControl struct {
	log   *slog.Logger
	begin func() (*runningWorker, error)

	mu      sync.Mutex
	current *runningWorker // nil: stopped
	since   time.Time
	kills   int
}

// workerStatus is the worker as the page shows it.
type workerStatus struct {
	State string `json:"state"` // running, stopped, or exited: ended by itself
	PID   int    `json:"pid,omitempty"`
	Since int64  `json:"since"` // milliseconds since 1970
	Kills int    `json:"kills"`
	Error string `json:"error,omitempty"`
}

func (c *workerControl) status() workerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := workerStatus{State: "stopped", Since: c.since.UnixMilli(), Kills: c.kills}
	if c.current == nil {
		return s
	}
	s.PID = c.current.pid
	select {
	case <-c.current.done:
		s.State = "exited"
		if c.current.err != nil {
			s.Error = c.current.err.Error()
		}
	default:
		s.State = "running"
	}
	return s
}

// start starts the worker unless it runs.
func (c *workerControl) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		select {
		case <-c.current.done:
		default:
			return nil
		}
	}
	w, err := c.begin()
	if err != nil {
		return fmt.Errorf("starting the worker: %w", err)
	}
	c.current, c.since = w, time.Now()
	return nil
}

// stop ends the worker and waits for it: with violence, as a crash would.
func (c *workerControl) stop(violent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return
	}
	c.current.end(violent)
	if !violent {
		select {
		case <-c.current.done:
		case <-time.After(workerEndsWithin):
			c.log.Warn("the worker did not end in time and is killed")
			c.current.end(true)
		}
	}
	<-c.current.done
	c.current, c.since = nil, time.Now()
	if violent {
		c.kills++
	}
}

// workerProcess makes workers that are processes: this program again, with another argument.
func workerProcess(databaseURL, redisURL string) func() (*runningWorker, error) {
	return func() (*runningWorker, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self, workerArg)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+databaseURL, "REDIS_URL="+redisURL)
		cmd.Stderr = os.Stderr
		// A terminal's Ctrl-C goes to the whole process group; the worker's turn comes later.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		// The worker ends when this pipe does: also when this process dies without a word.
		lifeline, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		w := &runningWorker{pid: cmd.Process.Pid, done: make(chan struct{})}
		w.end = func(violent bool) {
			if violent {
				_ = cmd.Process.Kill() // fails only when it has ended
			}
			_ = lifeline.Close()
		}
		go func() { // owned by the workerControl, which waits for done
			defer close(w.done)
			if err := cmd.Wait(); err != nil {
				w.err = errors.New("the worker ended: " + err.Error())
			}
		}()
		return w, nil
	}
}

// untilClosed calls end when r is at its end: in a worker process, when the demo lets go of it.
func untilClosed(r io.Reader, end func()) {
	_, _ = io.Copy(io.Discard, r)
	end()
}
