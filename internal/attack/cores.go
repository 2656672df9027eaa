//go:build !linux

package main

// apart says where the attackers run.
func apart() string { return "and the same for them" }

// onOtherCores calls start, which starts a process.
func onOtherCores(start func() error) error { return start() }
