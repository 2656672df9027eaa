//go:build !linux

package network

import "os"

func (h *Host) open() error { return ErrUnsupported }

// Enter needs Linux.
func (h *Host) Enter() error { return ErrUnsupported }

func openTun(string, [4]byte, *[4]byte) (*os.File, error) { return nil, ErrUnsupported }
