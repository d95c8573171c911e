package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/metadata/kv"
)

// patient bounds every wait of the tests.
const patient = 20 * time.Second

var shared redis.Shared

type main struct{ *testing.M }

func (m main) Run() int {
	code := m.M.Run()
	if err := shared.Stop(); err != nil {
		fmt.Println("stop redis:", err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(main{m}) }

func newNamespace() string { return "t-" + strings.ToLower(rand.Text()[:12]) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openURL(t testing.TB, url string, opts Options) *Store {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = discard()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	s, err := Open(ctx, url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	t.Cleanup(cancel)
	return ctx
}

func set(key, value string) kv.Op { return kv.Op{Key: key, Value: []byte(value)} }

func commit(t testing.TB, s kv.Store, ops ...kv.Op) kv.Revision {
	t.Helper()
	revs, err := s.Commit(ctxOf(t), ops, nil)
	if err != nil {
		t.Fatal(err)
	}
	return revs[0]
}

func do(t testing.TB, s *redis.Server, args ...string) string {
	t.Helper()
	out, err := s.Do(args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out
}

func watchAll(t testing.TB, s kv.Store) <-chan []kv.Item {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ch, err := s.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// next returns the next batch of a watch, or false when it ended.
func next(t testing.TB, ch <-chan []kv.Item) ([]kv.Item, bool) {
	t.Helper()
	select {
	case items, ok := <-ch:
		return items, ok
	case <-time.After(patient):
		t.Fatal("watch neither delivers nor ends")
		return nil, false
	}
}

func wantEnd(t testing.TB, ch <-chan []kv.Item) {
	t.Helper()
	for {
		if _, ok := next(t, ch); !ok {
			return
		}
	}
}

// proxy passes connections on to a server, and breaks them when told.
type proxy struct {
	net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	target string // of new connections
	conns  []net.Conn
	away   bool   // new connections are closed at once
	mute   bool   // answers are dropped
	cutAt  string // the connection is cut when the answer to a request that contains it comes
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, target: target}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.set(func() { p.away = true })
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url(ns string) string { return fmt.Sprintf("redis://%s?namespace=%s", p.Addr(), ns) }

func (p *proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.set(func() {
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.conns = nil
	})
}

func (p *proxy) accept() {
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		up, err := net.Dial("tcp", p.target)
		if err != nil || p.away {
			_ = c.Close()
			if err == nil {
				_ = up.Close()
			}
			p.mu.Unlock()
			continue
		}
		p.conns = append(p.conns, c, up)
		p.mu.Unlock()
		var doomed bool // under mu
		p.wg.Go(func() { p.pass(up, c, true, &doomed) })
		p.wg.Go(func() { p.pass(c, up, false, &doomed) })
	}
}

func (p *proxy) pass(to, from net.Conn, requests bool, doomed *bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		drop := !requests && p.mute
		if requests && p.cutAt != "" && bytes.Contains(b[:n], []byte(p.cutAt)) {
			*doomed, p.cutAt = true, ""
		}
		end := !requests && *doomed
		p.mu.Unlock()
		if end {
			return
		}
		if drop {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// mirror keeps a copy of a store as consumers do: range, watch, and range anew
// when the watch ends.
type mirror struct {
	mu    sync.Mutex
	items map[string]kv.Item
	ends  int // of watches
	wg    sync.WaitGroup
	stop  context.CancelFunc
}

func newMirror(t testing.TB, s kv.Store) *mirror {
	ctx, cancel := context.WithCancel(context.Background())
	m := &mirror{items: map[string]kv.Item{}, stop: cancel}
	m.wg.Go(func() {
		for ctx.Err() == nil {
			if err := m.follow(ctx, s); err != nil && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
	t.Cleanup(func() { cancel(); m.wg.Wait() })
	return m
}

func (m *mirror) follow(ctx context.Context, s kv.Store) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := s.Watch(wctx, "")
	if err != nil {
		return err
	}
	all := map[string]kv.Item{}
	for from := ""; ; {
		items, err := s.Range(ctx, "", from, 1000, false)
		if err != nil {
			return err
		}
		for _, it := range items {
			all[it.Key] = it
			from = it.Key
		}
		if len(items) < 1000 {
			break
		}
	}
	m.mu.Lock()
	m.items = all
	m.mu.Unlock()
	for items := range ch {
		m.mu.Lock()
		for _, it := range items {
			if it.Revision <= m.items[it.Key].Revision {
				continue
			}
			if m.items[it.Key] = it; it.Value == nil {
				delete(m.items, it.Key)
			}
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	m.ends++
	m.mu.Unlock()
	return nil
}

// same waits until the copy is what the store holds.
func (m *mirror) same(t testing.TB, s kv.Store) {
	t.Helper()
	want := map[string]kv.Item{}
	for from := ""; ; {
		items, err := s.Range(ctxOf(t), "", from, 1000, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			want[it.Key], from = it, it.Key
		}
		if len(items) < 1000 {
			break
		}
	}
	differ := func() (out []string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for k, it := range want {
			if got := m.items[k]; got.Revision != it.Revision || !bytes.Equal(got.Value, it.Value) {
				out = append(out, k)
			}
		}
		for k := range m.items {
			if _, ok := want[k]; !ok {
				out = append(out, k)
			}
		}
		slices.Sort(out)
		return out
	}
	for end := time.Now().Add(patient); len(differ()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the watch does not lead to what the store holds: %d of %d keys differ: %.10q", len(differ()), len(want), differ())
		}
	}
}

// captured is a logger whose lines can be read.
func captured() (*slog.Logger, func() string) {
	var mu sync.Mutex
	var b bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return b.Write(p)
	})
	return slog.New(slog.NewTextHandler(w, nil)), func() string {
		mu.Lock()
		defer mu.Unlock()
		return b.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var _ io.Writer = writerFunc(nil)
