// Package bucketurl opens a bucket by its URL.
package bucketurl

import (
	"context"
	"fmt"
	"strings"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/dir"
)

// Options of Open.
type Options struct {
	FS vfs.FS // of dir:// buckets
}

// Open opens dir://PATH.
func Open(_ context.Context, raw string, o Options) (objstore.Bucket, error) {
	path, ok := strings.CutPrefix(raw, "dir://")
	if !ok || path == "" {
		return nil, fmt.Errorf("bucket %q: want dir://PATH", raw)
	}
	return dir.New(o.FS, path)
}
