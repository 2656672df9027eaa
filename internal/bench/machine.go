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
	s := statOf(pid)
	return (s[11] + s[12]) / ticksEach
}

// ticksEach is how many ticks a second has: USER_HZ, the same on all of Linux's 64-bit machines.
const ticksEach = 100

// statOf is what the kernel says of a process, from its state on: [1] is the parent, [11] to [14] are ticks of CPU, user and system, its own
// and those of children that have ended. Zeros where it cannot be told.
func statOf(pid int) (s [15]float64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ") // the name before may hold anything
	for i, field := range strings.Fields(rest) {
		if i < len(s) {
			s[i], _ = strconv.ParseFloat(field, 64)
		}
	}
	return s
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
