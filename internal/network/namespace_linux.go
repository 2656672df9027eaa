package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// open makes the host's namespace, with a cable to the switch.
func (h *Host) open() error {
	done := make(chan error)
	go func() { // ends at once
		// Never unlocked: the thread stays in the namespace, and so must end with the goroutine.
		runtime.LockOSThread()
		done <- h.openHere()
	}()
	return <-done
}

func (h *Host) openHere() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return unsupported("unshare", err)
	}
	var err error
	if h.space, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	lo := [4]byte{127, 0, 0, 1}
	if h.tun, err = openTun("eth0", h.addr(), &lo); err != nil {
		h.space.Close()
	}
	return err
}

// Enter takes the calling thread to the host: what it starts from now on runs there. The thread cannot come back, so the goroutine must be
// locked to it, by [runtime.LockOSThread], and must not be unlocked.
func (h *Host) Enter() error {
	if h.space == nil {
		return nil
	}
	if err := unix.Setns(int(h.space.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering host %s: %w", h.Name, err)
	}
	return nil
}

// openTun makes an interface whose packets are ours to read and write, in the calling thread's namespace. lo is the address of the
// loopback there, nil if it has one.
func openTun(name string, addr [4]byte, lo *[4]byte) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, unsupported("/dev/net/tun", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil && lo != nil {
		err = configure("lo", *lo, 8, 65536)
	}
	if err == nil {
		err = configure(name, addr, 24, mtu)
	}
	if err != nil {
		unix.Close(fd)
		return nil, unsupported("interface "+name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// configure gives an interface its address and brings it up.
func configure(name string, addr [4]byte, bits, mtu int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	mask := ^uint32(0) << (32 - bits)
	for _, step := range []struct {
		ask  uint
		fill func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error {
			return r.SetInet4Addr([]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)})
		}},
		{unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(mtu)); return nil }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = step.fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, step.ask, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unsupported says which errors mean that this machine cannot.
func unsupported(what string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w (%s: %w)", ErrUnsupported, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
