package objstore_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/objstoretest"
)

func TestPatient(t *testing.T) {
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return objstore.Patient(objstore.NewMem(), time.Minute) })
}

// A store that is busy for a while is waited for, one that stays so is not for ever; other errors are told at once.
func TestPatientWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := objstore.NewFault(objstore.NewMem(), 1)
		p, ctx := objstore.Patient(f, time.Minute), t.Context()
		requests := map[string]func(context.Context) error{
			"put": func(ctx context.Context) error {
				_, err := p.Put(ctx, "k", strings.NewReader("body"), objstore.PutOptions{})
				return err
			},
			"get": func(ctx context.Context) error {
				r, _, err := p.Get(ctx, "k", 0, -1)
				if err != nil {
					return err
				}
				defer r.Close()
				if b, err := io.ReadAll(r); err != nil || string(b) != "body" {
					t.Errorf("read %q, %v", b, err)
				}
				return nil
			},
			"head":        func(ctx context.Context) error { _, err := p.Head(ctx, "k"); return err },
			"list":        func(ctx context.Context) error { _, _, err := p.List(ctx, "", "", 10); return err },
			"delete":      func(ctx context.Context) error { return p.Delete(ctx, "other") },
			"delete many": func(ctx context.Context) error { _, err := p.DeleteMany(ctx, []string{"other"}); return err },
		}
		if err := requests["put"](ctx); err != nil {
			t.Fatal(err)
		}
		busy := objstore.FaultRule{Kind: objstore.FaultThrottle, Probability: 1}
		for name, request := range requests {
			began := time.Now()
			id := f.Add(busy)
			time.AfterFunc(30*time.Second, func() { f.Remove(id) })
			if err := request(ctx); err != nil || time.Since(began) < 30*time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(began))
			}
			id = f.Add(busy)
			began = time.Now()
			if err := request(ctx); !errors.Is(err, objstore.ErrThrottled) || time.Since(began) > 63*time.Second {
				t.Errorf("%s of a store that stays busy: %v after %s", name, err, time.Since(began))
			}
			short, cancel := context.WithTimeout(ctx, time.Second)
			if err := request(short); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s until its time is over: %v", name, err)
			}
			cancel()
			f.Remove(id)
		}
		began := time.Now()
		if _, err := p.Head(ctx, "absent"); !errors.Is(err, objstore.ErrNotFound) || time.Since(began) > 0 {
			t.Errorf("absent: %v after %s", err, time.Since(began))
		}
	})
}
