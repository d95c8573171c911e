package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// localStore is the store of class local of an agent of a cluster. It is a directory of
// its own, local/, which is there from the first partition of the class on.
type localStore struct {
	open   func() (*storage.Store, error)
	mu     sync.Mutex // held while it is opened or closed
	closed bool
	store  atomic.Pointer[storage.Store]
}

var _ broker.LocalStore = (*localStore)(nil)

// Open implements broker.LocalStore.
func (l *localStore) Open() (*storage.Store, error) {
	if s := l.store.Load(); s != nil {
		return s, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.store.Load(); s != nil {
		return s, nil
	}
	if l.closed {
		return nil, storage.ErrClosed
	}
	s, err := l.open()
	if err == nil {
		l.store.Store(s)
	}
	return s, err
}

// ready opens the store.
func (l *localStore) ready() error {
	_, err := l.Open()
	return err
}

// Opened implements broker.LocalStore.
func (l *localStore) Opened() *storage.Store { return l.store.Load() }

func (l *localStore) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if s := l.store.Load(); s != nil {
		return s.Close()
	}
	return nil
}

// openStorage opens the store of a node that is alone, or that of class object of an agent of a
// cluster. If the agent has led partitions of class local, it opens their store too.
func (a *Agent) openStorage(context.Context) error {
	o := a.storageOptions(a.cfg.DataDir)
	if a.clustered() {
		o = a.storageOptions(filepath.Join(a.cfg.DataDir, "object"))
		o.Remote = a.remoteStream()
	}
	s, err := storage.Open(o)
	if err != nil {
		return err
	}
	a.store = s
	a.onClose(s.Close)
	if !a.clustered() {
		return nil
	}
	a.local = &localStore{open: a.openLocal}
	a.onClose(a.local.close)
	if _, err := os.Stat(a.localDir()); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = a.local.Open()
	return err
}

func (a *Agent) localDir() string { return filepath.Join(a.cfg.DataDir, "local") }

func (a *Agent) storageOptions(dir string) storage.Options {
	return storage.Options{FS: vfs.OS(), Dir: dir, DiskID: a.disk.ID(), WALSize: a.cfg.WALSize,
		Prefill: min(a.cfg.WALSize, 64<<20), TailBytes: a.cfg.memoryTail(), ReadBytes: a.cfg.ReadMemory, DiskBudget: a.cfg.DiskBudget, Now: a.cfg.Now, Logger: a.component("storage"),
		OnFailure: func(err error) { a.fail(err) },
		OnClosed: func(tp ids.TopicPartition) {
			if b := a.closed.Load(); b != nil {
				b.Flushed(tp)
			}
		}}
}

// openLocal opens the store of class local. From now on the two stores have half of the memory and
// of the disk each.
func (a *Agent) openLocal() (*storage.Store, error) {
	o := a.storageOptions(a.localDir())
	o.TailBytes, o.ReadBytes, o.DiskBudget = o.TailBytes/2, o.ReadBytes/2, o.DiskBudget/2
	if o.DiskBudget > 0 {
		o.WALSize = max(min(o.WALSize, o.DiskBudget/2), minWALSize)
		o.Prefill = min(o.Prefill, o.WALSize)
	}
	s, err := storage.Open(o)
	if err != nil {
		return nil, err
	}
	a.store.SetLimits(storage.Limits{TailBytes: o.TailBytes, ReadBytes: o.ReadBytes, DiskBudget: o.DiskBudget})
	a.component("storage").Info("the store of class local is open", "dir", o.Dir, "disk", a.disk.Identity.DiskID, "partitions", len(s.Logs()))
	return s, nil
}

// checkDisk refuses a data directory that was given up with `cirrolog cluster abandon-disk`.
func (a *Agent) checkDisk(ctx context.Context) error {
	if !a.clustered() {
		return nil
	}
	r, err := a.meta.Disk(ctx, a.disk.ID())
	if err == nil && r != nil && r.Abandoned() {
		err = fmt.Errorf("%s: %w at %s: its partitions of class local were given to other agents; start with an empty --data-dir", a.cfg.DataDir, lead.ErrDiskAbandoned, time.UnixMilli(r.AtMs).UTC().Format(time.RFC3339))
	}
	return err
}

// localStores is what the broker has beside its store; nil: nothing.
func (a *Agent) localStores() broker.LocalStore {
	if a.local == nil {
		return nil
	}
	return a.local
}

// classed is a store and what it is for.
type classed struct {
	*storage.Store
	class metadata.Durability
}

// stores are those that are open.
func (a *Agent) stores() []classed {
	if a.local == nil {
		return []classed{{a.store, metadata.DurabilityLocal}}
	}
	out := []classed{{a.store, metadata.DurabilityObject}}
	if s := a.local.Opened(); s != nil {
		out = append(out, classed{s, metadata.DurabilityLocal})
	}
	return out
}

// logs is how many partitions have a log on this disk.
func (a *Agent) logs() (n int) {
	for _, s := range a.stores() {
		n += s.Stats().Logs
	}
	return n
}

// storageErr returns the failure of a store, or nil.
func (a *Agent) storageErr() error {
	var errs []error
	for _, s := range a.stores() {
		errs = append(errs, s.Err())
	}
	return errors.Join(errs...)
}
