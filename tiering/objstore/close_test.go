package objstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

type closer struct {
	objstore.Bucket
	err error
}

func (c closer) Close() error { return c.err }

func TestClose(t *testing.T) {
	want := errors.New("closed")
	c := closer{objstore.NewMem(), want}
	for name, b := range map[string]objstore.Bucket{
		"itself": c, "prefix": objstore.Prefix(c, "p/"), "fault": objstore.NewFault(c, 1),
		"observe": objstore.Observe(c, func(string, time.Duration, int64, error) {}),
	} {
		if err := objstore.Close(b); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := objstore.Close(objstore.Prefix(objstore.NewMem(), "p/")); err != nil {
		t.Fatal(err)
	}
}
