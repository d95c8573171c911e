package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// probeTime bounds the check of the bucket at start.
const probeTime = 30 * time.Second

// How far the clock may be from that of the bucket and of the metadata store. S3 and DynamoDB
// refuse requests beyond 15 minutes; retention and the times that brokers stamp go wrong before.
const (
	clockWarn   = time.Minute
	clockRefuse = 5 * time.Minute
)

// probeBucket checks that a bucket can be used, and how far ahead its clock is.
func probeBucket(ctx context.Context, b objstore.Bucket, url string) (ahead time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ahead, err = objstore.Probe(ctx, b)
	todo := ""
	switch {
	case err == nil:
		return ahead, nil
	case errors.Is(err, objstore.ErrUnsuitable):
		todo = "choose a store that enforces conditional writes and lists as S3 does; `cirrolog doctor --bucket` checks one"
	case errors.Is(err, objstore.ErrNoBucket):
		todo = "check the bucket's name, or create it"
	case errors.Is(err, objstore.ErrClock):
		todo = "set the clock of this machine (NTP)"
	case errors.Is(err, objstore.ErrDenied):
		todo = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role, and what they are allowed: s3:GetObject, PutObject, DeleteObject and ListBucket"
	case objstore.Retriable(err), errors.Is(err, context.DeadlineExceeded):
		todo = "check that endpoint= and region= are right and that the store runs"
	default:
		return 0, fmt.Errorf("bucket %s can't be used: %w", bucketurl.Redact(url), err)
	}
	return 0, fmt.Errorf("bucket %s can't be used: %w: %s", bucketurl.Redact(url), err, todo)
}

// storeAhead asks how far ahead the metadata store's clock is; 0 if it has none.
func storeAhead(ctx context.Context, s kv.Store) (time.Duration, error) {
	c, ok := s.(kv.Clock)
	if !ok {
		return 0, nil
	}
	began := time.Now()
	shown, err := c.Time(ctx)
	if err != nil {
		return 0, err
	}
	return objstore.Ahead(shown, began, time.Now()), nil
}

// judgeClock refuses a clock that is far from the one that what has.
func judgeClock(what string, ahead time.Duration) (warning string, err error) {
	if ahead.Abs() <= clockWarn {
		return "", nil
	}
	side := "behind"
	if ahead < 0 {
		side = "ahead of"
	}
	text := fmt.Sprintf("the clock of this machine is %s %s that of the %s: set it (NTP)", ahead.Abs().Round(time.Second), side, what)
	if ahead.Abs() > clockRefuse {
		return "", errors.New(text)
	}
	return text, nil
}

func (a *Agent) checkClock(what string, ahead time.Duration) error {
	warning, err := judgeClock(what, ahead)
	if warning != "" {
		a.component("agent").Warn(warning)
	}
	return err
}

// metadataOptions are those that tell whether bucket, metadata store and data directory belong together.
func (c *Config) metadataOptions(id *storage.Identity, store kv.Store, b objstore.Bucket) metadata.Options {
	return metadata.Options{KV: store, Bucket: b, ClusterID: id.ClusterID, RememberedNodeID: max(id.NodeID, 0),
		MinEpoch: id.Epoch + 1, NodeID: c.NodeID, Lease: c.Lease, Reader: c.Role == RoleReader}
}

// Check is what Inspect says about one thing that an agent needs.
type Check struct {
	Name string
	OK   string // what was found, if it will do
	Warn string // if it will do, and may be regretted
	Err  error  // why an agent would not start
}

// Inspect checks what Start would refuse: the bucket, the data directory, the metadata store of a cluster,
// their clocks, whether all belong together, and whether a live agent has the node id or --advertised-addr.
// It writes small objects and rows and removes them, and what opening a metadata store for the
// first time makes.
func Inspect(ctx context.Context, cfg Config, log *slog.Logger) (out []Check) {
	add := func(name, ok string, err error) bool {
		out = append(out, Check{Name: name, OK: ok, Err: err})
		return err == nil
	}
	clock := func(name, what string, ahead time.Duration) {
		c := Check{Name: name, OK: "as here"}
		c.Warn, c.Err = judgeClock(what, ahead)
		out = append(out, c)
	}
	began, name := time.Now(), bucketurl.Redact(cfg.bucketURL())
	b, err := bucketurl.Open(ctx, cfg.bucketURL(), bucketurl.Options{FS: vfs.OS()})
	var ahead time.Duration
	if err == nil {
		defer func() { _ = objstore.Close(b) }()
		ahead, err = probeBucket(ctx, b, cfg.bucketURL())
	}
	usable := add("bucket", fmt.Sprintf("%s: conditional writes, ranges, lists and deletes work (%s)", name, time.Since(began).Round(time.Millisecond)), err)
	if usable {
		clock("bucket clock", "bucket", ahead)
	}
	if cfg.Metadata == "" {
		return out
	}
	id, err := storage.PeekDisk(vfs.OS(), cfg.DataDir)
	usable = add("data directory", fmt.Sprintf("%s: not in use, %s", cfg.DataDir, remembered(id)), err) && usable
	began = time.Now()
	store, kind, err := OpenMetadata(ctx, cfg.Metadata, log)
	if err == nil {
		defer func() { _ = store.Close() }()
		err = kv.Probe(ctx, store)
		if err == nil {
			ahead, err = storeAhead(ctx, store)
		}
	}
	if add("metadata", fmt.Sprintf("%s: conditional commits work (%s)", kind, time.Since(began).Round(time.Millisecond)), err) {
		clock("metadata clock", "metadata store", ahead)
	} else {
		usable = false
	}
	if err := cfg.ownAddresses(net.InterfaceAddrs); err != nil {
		usable = add("advertised address", "", err)
	}
	if usable {
		o := cfg.metadataOptions(&id, store, b)
		o.Advertised, o.Logger = cfg.AdvertisedAddr, log
		cluster, err := metadata.Inspect(ctx, o)
		add("cluster", fmt.Sprintf("%s: bucket, metadata store and data directory belong together, node id and address are free", cmp.Or(cluster, "none yet")), err)
	}
	return out
}

func remembered(id storage.Identity) string {
	if id.NodeID < 1 {
		return "of no node yet"
	}
	return fmt.Sprintf("of node %d", id.NodeID)
}
