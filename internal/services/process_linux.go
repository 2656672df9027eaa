package services

import "syscall"

// dieWithParent has the kernel end the process when we die.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
