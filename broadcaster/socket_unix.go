//go:build unix

package broadcaster

import "syscall"

const canWriteOnce = true

// writeOnce writes to a socket that does not block, and returns how much it took.
func writeOnce(fd uintptr, p []byte) int {
	n, _ := syscall.Write(int(fd), p)
	return max(n, 0)
}
