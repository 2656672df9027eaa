package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profile takes a CPU profile of this process, if PROFILE names a folder, until stop is called.
func profile(name string) (stop func()) {
	folder := os.Getenv("PROFILE")
	if folder == "" {
		return func() {}
	}
	f, err := os.Create(fmt.Sprintf("%s/%s.pprof", folder, name))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
	return pprof.StopCPUProfile
}
