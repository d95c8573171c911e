package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/localstack/minio"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/dir"
	"github.com/cirrolog/cirrolog/tiering/objstore/s3"
)

// mirrored is a bucket on a real store. What it takes is also in a bucket in the suite's file system, so that
// the crash clones and errors of that are the store's too: a change fails if the file system does, and is then made in
// the store, whose answer counts, as do all that it says to reads.
type mirrored struct {
	objstore.Bucket
	disk objstore.Bucket
}

func (m *mirrored) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) (objstore.ObjectInfo, error) {
	if _, err := m.disk.Put(ctx, key, body, o); err != nil && !errors.Is(err, objstore.ErrPrecondition) {
		return objstore.ObjectInfo{}, err
	}
	if _, err := body.Seek(0, 0); err != nil {
		return objstore.ObjectInfo{}, err
	}
	return m.Bucket.Put(ctx, key, body, o)
}

func (m *mirrored) Delete(ctx context.Context, key string) error {
	if err := m.disk.Delete(ctx, key); err != nil {
		return err
	}
	return m.Bucket.Delete(ctx, key)
}

func (m *mirrored) DeleteMany(context.Context, []string) (map[string]error, error) {
	return nil, errors.New("not used")
}

// fill copies what the disk has into the store.
func (m *mirrored) fill(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	after := ""
	for more := true; more; {
		var objects []objstore.ObjectInfo
		var err error
		if objects, more, err = m.disk.List(ctx, "", after, 1000); err != nil {
			return err
		}
		for _, o := range objects {
			after = o.Key
			g.Go(func() error {
				b, err := readRange(ctx, m.disk, o.Key, 0, o.Size)
				if err == nil {
					_, err = m.Bucket.Put(ctx, o.Key, bytes.NewReader(b), objstore.PutOptions{})
				}
				return err
			})
		}
	}
	return g.Wait()
}

var lostAnswers = []objstore.FaultKind{objstore.FaultUnknownAfter, objstore.FaultUnknownBefore}

// TestStreamOnMinIO runs the contract's suite on a real store, with lost answers to puts of the stream: each
// opening, also that of a crash clone, is of a part of the bucket of its own.
func TestStreamOnMinIO(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("suite", func(t *testing.T) { // ends before the leak check
		e := minio.Start(t)
		b, err := s3.New(t.Context(), s3.Options{Bucket: e.Bucket, Endpoint: e.URL, Region: "us-east-1", AccessKey: e.AccessKey, SecretKey: e.SecretKey})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		var mu sync.Mutex
		var faults []*objstore.Fault
		waltest.RunFewer(t, func(c waltest.Config) (contract.Stream, error) {
			disk, err := dir.New(c.FS, "bucket")
			if err != nil {
				return nil, err
			}
			mu.Lock()
			n := len(faults)
			f := objstore.NewFault(objstore.Prefix(b, fmt.Sprintf("%d/", n)), uint64(n))
			faults = append(faults, f)
			mu.Unlock()
			m := &mirrored{Bucket: f, disk: disk}
			if err := m.fill(t.Context()); err != nil {
				return nil, err
			}
			for _, k := range lostAnswers {
				f.Add(objstore.FaultRule{Method: objstore.MethodPut, Prefix: Prefix, Kind: k, Probability: 0.02})
			}
			return newLineage(m, c)
		}, 8)
		puts, lost := int64(0), int64(0)
		for _, f := range faults {
			puts += f.Calls(objstore.MethodPut)
			for id := range lostAnswers {
				lost += f.Hits(objstore.RuleID(id))
			}
		}
		t.Logf("%d openings, %d puts, %d answers lost", len(faults), puts, lost)
		if lost == 0 {
			t.Error("no answer was lost")
		}
	})
}
