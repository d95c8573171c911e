package ring_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ringPath = "/d/ring.wal"

func openRing(c waltest.Config) (wal.Stream, error) { return openPrefilled(c, 0) }

func openPrefilled(c waltest.Config, prefill int64) (wal.Stream, error) {
	if err := c.FS.MkdirAll("/d"); err != nil {
		return nil, err
	}
	if err := c.FS.SyncDir("/"); err != nil {
		return nil, err
	}
	r, err := ring.Open(ring.Options{FS: c.FS, Path: ringPath, Size: c.Size, DiskID: c.DiskID, Pool: c.Pool,
		Announce: c.Announce, OnFull: c.OnFull, Prefill: prefill})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func TestConformance(t *testing.T) {
	waltest.Run(t, openRing)
}

func TestConformancePrefilled(t *testing.T) {
	waltest.Run(t, func(c waltest.Config) (wal.Stream, error) { return openPrefilled(c, 64<<10) })
}
