//go:build !unix

package broadcaster

// A socket can only be written to by waiting: each session has a flusher of its own.
const canWriteOnce = false

func writeOnce(uintptr, []byte) int { return 0 }
