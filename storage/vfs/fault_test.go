package vfs_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

func TestFault(t *testing.T) {
	boom := errors.New("boom")
	fault := vfs.NewFault(memWithDir(t))
	fault.Add(vfs.Rule{Op: vfs.OpWrite, Path: ".log", Skip: 1, Count: 2, Err: syscall.EIO})
	fault.Add(vfs.Rule{Op: vfs.OpSync, Path: ".log", Err: boom})
	fault.Add(vfs.Rule{Op: vfs.OpSyncDir, Delay: 20 * time.Millisecond})
	f := open(t, fault, "/data/1.log", vfs.Create)
	other := open(t, fault, "/data/1.idx", vfs.Create)
	write(t, f, "a", 0)
	for range 2 {
		_, err := f.WriteAt([]byte("b"), 0)
		wantErr(t, err, syscall.EIO)
		write(t, other, "b", 0)
	}
	write(t, f, "c", 1)
	if got := get(t, fault, "/data/1.log"); got != "ac" {
		t.Fatalf("file has %q", got)
	}
	for range 3 {
		wantErr(t, f.Sync(), boom)
	}
	must(t, other.Sync())
	start := time.Now()
	must(t, fault.SyncDir("/data"))
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Fatalf("no delay: %s", took)
	}
	if w, s, d := fault.Fired(vfs.OpWrite), fault.Fired(vfs.OpSync), fault.Fired(vfs.OpSyncDir); w != 2 || s != 3 || d != 1 {
		t.Fatalf("fired %d writes, %d syncs, %d directory syncs", w, s, d)
	}
	fault.Clear()
	must(t, f.Sync())
}
