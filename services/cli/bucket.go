package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// openBucket opens the bucket of a verb that reads. A directory that is no
// bucket is refused, where a server would make one.
func openBucket(ctx context.Context, url string) (objstore.Bucket, error) {
	if path, ok := strings.CutPrefix(url, "dir://"); ok && path != "" {
		if _, err := os.Stat(filepath.Join(path, "objects")); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open bucket %s: there is none: a node's own one is dir://DATA-DIR/bucket", url)
		}
	}
	return bucketurl.Open(ctx, url, bucketurl.Options{FS: vfs.OS()})
}
