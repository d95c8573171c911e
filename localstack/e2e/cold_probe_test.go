package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeEvery = 5 * time.Millisecond
	probeBlock = 4096 // bytes of a message and of a write
	probeSlots = 256  // blocks of the file, written in turn
)

// probeWaits is what a bare exchange waits, from when it was due: the least that any
// program on this machine needs for an acknowledged write, however it is made.
type probeWaits struct{ P50, P99 time.Duration }

// runProbe measures bare exchanges for d in a process of its own, with a file in dir.
func runProbe(dir string, d time.Duration) (w probeWaits, err error) {
	cmd := exec.Command(os.Args[0], "-test.run", "^TestColdProbe$")
	cmd.Env = append(os.Environ(), "COLD_PROBE_DIR="+dir, "COLD_PROBE_TIME="+d.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return w, fmt.Errorf("probe: %w\n%s", err, out)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	if err = json.Unmarshal(line, &w); err != nil {
		return w, fmt.Errorf("probe: %w\n%s", err, out)
	}
	return w, nil
}

// TestColdProbe is the process of runProbe: a thread that sleeps until a time, sends
// 4 KiB to another, which writes them through to the disk and answers. The threads
// wait in the kernel, so nothing of Go's scheduler is in what they measure.
func TestColdProbe(t *testing.T) {
	dir, long := os.Getenv("COLD_PROBE_DIR"), os.Getenv("COLD_PROBE_TIME")
	if dir == "" {
		t.Skip("skipped: the probe of TestColdReplay")
	}
	d, err := time.ParseDuration(long)
	if err != nil {
		t.Fatal(err)
	}
	client, server, err := blockingPair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	f, err := unix.Open(filepath.Join(dir, "probe"), unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_DSYNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f)
	var g group
	g.Go(func() error { return serveProbe(server, f) })
	waits, err := askProbe(client, d)
	_ = unix.Shutdown(client, unix.SHUT_WR)
	if serr := g.Wait(); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	slices.Sort(waits)
	out, err := json.Marshal(probeWaits{P50: waits[len(waits)/2], P99: waits[len(waits)*99/100]})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n", out)
}

// blockingPair returns both ends of a TCP connection over loopback; reads of them block.
func blockingPair() (client, server int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(l)
	if err = unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, err
	}
	if err = unix.Listen(l, 1); err != nil {
		return 0, 0, err
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return 0, 0, err
	}
	if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err = unix.Connect(client, addr); err != nil {
		return 0, 0, err
	}
	if server, _, err = unix.Accept(l); err != nil {
		return 0, 0, err
	}
	for _, fd := range []int{client, server} {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return 0, 0, err
		}
	}
	return client, server, nil
}

// serveProbe answers until the other end is shut.
func serveProbe(fd, file int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.Close(fd)
	block := make([]byte, probeBlock)
	for n := int64(0); n < probeSlots; n++ { // what is measured overwrites
		if _, err := unix.Pwrite(file, block, n*probeBlock); err != nil {
			return err
		}
	}
	for n := int64(0); ; n++ {
		got, _, err := unix.Recvfrom(fd, block, unix.MSG_WAITALL)
		if err != nil || got == 0 {
			return err
		}
		if _, err = unix.Pwrite(file, block, n%probeSlots*probeBlock); err != nil {
			return err
		}
		if _, err = unix.Write(fd, block[:1]); err != nil {
			return err
		}
	}
}

// askProbe makes an exchange each probeEvery for d and returns what they waited.
func askProbe(fd int, d time.Duration) (waits []time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	block := make([]byte, probeBlock)
	exchange := func() error {
		if _, err := unix.Write(fd, block); err != nil {
			return err
		}
		_, err := unix.Read(fd, block[:1])
		return err
	}
	if err = exchange(); err != nil { // the file is ready after the first
		return nil, err
	}
	due := time.Now()
	for end := due.Add(d); due.Before(end) || len(waits) == 0; due = due.Add(probeEvery) {
		if left := time.Until(due); left > 0 {
			ts := unix.NsecToTimespec(left.Nanoseconds())
			for unix.Nanosleep(&ts, &ts) == unix.EINTR {
			}
		}
		if err = exchange(); err != nil {
			return nil, err
		}
		waits = append(waits, time.Since(due))
	}
	return waits, nil
}
