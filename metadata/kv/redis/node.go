package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// ErrDataLost: Redis no longer has the namespace that was opened: it was
// emptied, or replaced by another. Nothing is served until the store is opened
// again. It comes with kv.ErrUnavailable.
var ErrDataLost = fmt.Errorf("%w: redis was emptied or replaced", kv.ErrLost)

// maxMoves bounds how often a call follows a hash slot that moves in a cluster.
const maxMoves = 6

// node is the server that has the namespace: a single one, or in a cluster the
// master of the namespace's hash slot.
type node struct {
	single  *goredis.Client
	cluster *goredis.ClusterClient
	key     string // a key of the slot
}

func newNode(opts *goredis.Options, clustered bool, key string, conns int) *node {
	if !clustered {
		o := *opts
		if conns > 0 {
			o.PoolSize, o.MaxConcurrentDials = conns, conns
		}
		return &node{single: goredis.NewClient(&o)}
	}
	o := goredis.ClusterOptions{
		Addrs: []string{opts.Addr}, Username: opts.Username, Password: opts.Password, TLSConfig: opts.TLSConfig,
		Protocol: opts.Protocol, MaxRetries: opts.MaxRetries, MaxRedirects: -1,
		DialTimeout: opts.DialTimeout, DialerRetries: opts.DialerRetries,
		ReadTimeout: opts.ReadTimeout, WriteTimeout: opts.WriteTimeout,
		PoolSize: opts.PoolSize, PoolTimeout: opts.PoolTimeout, ConnMaxIdleTime: opts.ConnMaxIdleTime,
		ConnMaxLifetime: opts.ConnMaxLifetime, ClientName: opts.ClientName,
		DisableIdentity: opts.DisableIdentity, MaintNotificationsConfig: opts.MaintNotificationsConfig,
	}
	if conns > 0 {
		o.PoolSize = conns
	}
	return &node{cluster: goredis.NewClusterClient(&o), key: key}
}

func (n *node) client(ctx context.Context) (*goredis.Client, error) {
	if n.cluster == nil {
		return n.single, nil
	}
	return n.cluster.MasterForKey(ctx, n.key)
}

// moved reports whether err says that another server has the slot, which is
// then looked for.
func (n *node) moved(ctx context.Context, err error) bool {
	if n.cluster == nil {
		return false
	}
	_, is := goredis.IsMovedError(err)
	is = is || goredis.IsTryAgainError(err)
	if _, ask := goredis.IsAskError(err); ask {
		is = true
	}
	if is || !isReply(err) { // else the master may be gone
		n.cluster.ReloadState(ctx)
	}
	return is
}

func (n *node) close() error {
	if n.cluster != nil {
		return n.cluster.Close()
	}
	return n.single.Close()
}

// isReply reports whether err is the server's answer, rather than its absence.
func isReply(err error) bool {
	var reply goredis.Error
	return errors.As(err, &reply)
}

// The states of a mark.
const (
	unsent int32 = iota
	sent
	abandoned
)

var errSentOnce = errors.New("a request that was sent, or given up, is not sent again")

// mark is an argument of a request that tells whether the request was written
// to a connection, and that keeps it from being written twice.
type mark struct {
	text  string
	state atomic.Int32
}

// MarshalBinary is called when the request is written.
func (m *mark) MarshalBinary() ([]byte, error) {
	if !m.state.CompareAndSwap(unsent, sent) {
		return nil, errSentOnce
	}
	return []byte(m.text), nil
}

// again allows another sending after an answer that nothing was done.
func (m *mark) again() bool { return m.state.CompareAndSwap(sent, unsent) }

// abandon keeps the request from being sent (again) and reports whether it was.
func (m *mark) abandon() bool { return m.state.Swap(abandoned) == sent }

// eval runs a script, by its hash if the server has it. m is its ARGV[1].
func (n *node) eval(ctx context.Context, m *mark, sc script, keys []string, argv []any) ([]any, error) {
	name, text := "evalsha", sc.sha
	for try := 0; ; try++ {
		c, err := n.client(ctx)
		if err != nil {
			return nil, err
		}
		args := make([]any, 0, 4+len(keys)+len(argv))
		args = append(args, name, text, len(keys))
		for _, k := range keys {
			args = append(args, k)
		}
		cmd := goredis.NewCmd(ctx, append(append(args, m), argv...)...)
		if err = c.Process(ctx, cmd); err == nil {
			return cmd.Slice()
		}
		switch {
		case goredis.HasErrorPrefix(err, "NOSCRIPT") && name == "evalsha":
			name, text = "eval", sc.source
		case try < maxMoves && n.moved(ctx, err):
			if sleep(ctx, 10*time.Millisecond<<try) != nil {
				return nil, err
			}
		default:
			return nil, err
		}
		if !m.again() {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// refusals are the answers after which nothing was done, and which pass or can
// be repaired on the server's side.
var refusals = []string{
	"LOADING", "READONLY", "MISCONF", "OOM", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS",
	"MOVED", "ASK", "TRYAGAIN", "NOAUTH", "WRONGPASS", "NOSCRIPT", "ERR max number of clients reached",
}

// refused reports whether err is an answer that nothing was done. In a script's
// error the word follows the place in the script: "@user_script: 7: -READONLY You …".
func refused(err error) bool {
	if !isReply(err) {
		return false
	}
	for _, word := range refusals {
		if strings.HasPrefix(err.Error(), word+" ") || err.Error() == word || strings.Contains(err.Error(), " -"+word+" ") {
			return true
		}
	}
	return false
}

// fault tells the caller of a failed request what is known: kv.ErrUnknown when
// the request was sent, might change something, and was not refused; else
// kv.ErrUnavailable.
func fault(err error, mayHaveChanged bool) error {
	kind := kv.ErrUnavailable
	if mayHaveChanged && !refused(err) {
		kind = kv.ErrUnknown
	}
	return fmt.Errorf("%w: %w", kind, err)
}
