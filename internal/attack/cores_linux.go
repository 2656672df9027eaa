package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// otherCores are those that this process may not run on, up to 64: they are left to the attackers.
func otherCores() (others unix.CPUSet) {
	var own unix.CPUSet
	if unix.SchedGetaffinity(0, &own) != nil {
		return others
	}
	online, _ := os.ReadDir("/sys/devices/system/cpu")
	for _, f := range online {
		var n int
		if _, err := fmt.Sscanf(f.Name(), "cpu%d", &n); err == nil && n < 64 && !own.IsSet(n) {
			others.Set(n)
		}
	}
	return others
}

// apart says where the attackers run.
func apart() string {
	others := otherCores()
	if others.Count() == 0 {
		return "and the same for them"
	}
	return fmt.Sprintf("%d for them", others.Count())
}

// onOtherCores calls start, which starts a process, so that this runs on the cores that are left to it.
func onOtherCores(start func() error) error {
	others := otherCores()
	var own unix.CPUSet
	if others.Count() == 0 || unix.SchedGetaffinity(0, &own) != nil {
		return start()
	}
	// A process is begun by a thread, and may run where that may.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.SchedSetaffinity(0, &others) != nil { // not those of this container
		return start()
	}
	defer unix.SchedSetaffinity(0, &own)
	return start()
}
