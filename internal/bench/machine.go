package main

import (
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
)

// cpuSeconds is what this process has used, user and system.
func cpuSeconds() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// rss is the resident memory of a process, in bytes; 0 where it cannot be told.
func rss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	if fields := strings.Fields(string(b)); len(fields) > 1 {
		pages, _ := strconv.ParseInt(fields[1], 10, 64)
		return pages * int64(os.Getpagesize())
	}
	return 0
}

// profile takes a CPU profile of this process until the function that it returns is called, if PROFILE names a folder.
func profile(args []string) (stop func()) {
	folder := os.Getenv("PROFILE")
	if folder == "" {
		return func() {}
	}
	f, err := os.Create(fmt.Sprintf("%s/%s-%d.pprof", folder, strings.Join(args[:min(2, len(args))], "-"), os.Getpid()))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fatal(err)
	}
	return pprof.StopCPUProfile
}

// heapProfile writes what is in use, if PROFILE names a folder.
func heapProfile(name string) {
	folder := os.Getenv("PROFILE")
	if folder == "" {
		return
	}
	f, err := os.Create(fmt.Sprintf("%s/%s-%d-heap.pprof", folder, name, os.Getpid()))
	if err == nil {
		err = pprof.WriteHeapProfile(f)
	}
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}
