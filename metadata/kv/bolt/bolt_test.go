package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{LockTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store { return openAt(t, filepath.Join(t.TempDir(), "meta.db")) })
}

func TestReopenKeepsItemsAndRevisionsGrow(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "meta.db")
	var last kv.Revision
	for round := range 4 {
		s := openAt(t, path)
		if round > 0 {
			it, err := s.Get(ctx, "stays")
			if err != nil || string(it.Value) != fmt.Sprint(round-1) {
				t.Fatalf("round %d: %q %v", round, it.Value, err)
			}
			if _, err := s.Get(ctx, "gone"); !errors.Is(err, kv.ErrNotFound) {
				t.Fatalf("round %d: deleted key: %v", round, err)
			}
		}
		revs, err := s.Commit(ctx, []kv.Op{{Key: "stays", Value: []byte(fmt.Sprint(round))}, {Key: "gone"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if revs[1] <= last {
			t.Fatalf("round %d: revision %d of a deleted and created key after %d", round, revs[1], last)
		}
		last = revs[1]
		if _, err := s.Commit(ctx, []kv.Op{{Key: "gone", Delete: true}}, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	openAt(t, path)
	_, err := Open(path, Options{LockTimeout: 20 * time.Millisecond})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second open: %v", err)
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	s := openAt(t, path)
	err := s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketFormat()).Put([]byte("version"), []byte("2"))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(path, Options{}); !errors.Is(err, ErrVersion) {
		t.Fatalf("open: %v", err)
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a metadata file\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "not a metadata file, or damaged") {
		t.Fatalf("open: %v, %v", s, err)
	}
}

// TestFailedWritePoisons: after a write failed the outcome is unknown, and the
// store says nothing more until it is opened again.
func TestFailedWritePoisons(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "meta.db")
	var mu sync.Mutex
	var file *os.File
	open := func(name string, flag int, mode os.FileMode) (*os.File, error) {
		mu.Lock()
		defer mu.Unlock()
		var err error
		file, err = os.OpenFile(name, flag, mode)
		return file, err
	}
	s, err := Open(path, Options{openFile: open, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, []kv.Op{{Key: "a", Value: []byte("1")}}, nil); err != nil {
		t.Fatal(err)
	}
	file.Close() // every later write fails
	if _, err := s.Commit(ctx, []kv.Op{{Key: "a", Value: []byte("2")}}, nil); !errors.Is(err, kv.ErrUnknown) {
		t.Fatalf("commit on a broken file: %v", err)
	}
	if _, err := s.Get(ctx, "a"); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("get after it: %v", err)
	}
	if _, err := s.Commit(ctx, []kv.Op{{Key: "b"}}, nil); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("commit after it: %v", err)
	}
	s.Close()
	again := openAt(t, path)
	if it, err := again.Get(ctx, "a"); err != nil || string(it.Value) != "1" {
		t.Fatalf("after reopening: %q, %v", it.Value, err)
	}
}

func TestCloseAnswersWaitingCommits(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := 0; ; j++ {
				_, err := s.Commit(context.Background(), []kv.Op{{Key: fmt.Sprint(i, "/", j)}}, nil)
				if errors.Is(err, kv.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	wg.Wait()
}
