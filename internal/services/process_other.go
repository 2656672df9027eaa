//go:build !linux

package services

import "syscall"

// dieWithParent does nothing: other kernels cannot. The keeper ends the process.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
