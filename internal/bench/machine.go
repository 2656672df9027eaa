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

// cpuOf is what another process has used, user and system, in steps of 10 ms; 0 where it cannot be told.
func cpuOf(pid int) float64 {
	const ticks = 100 // a second: USER_HZ, the same on all of Linux's 64-bit machines
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / ticks
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
