package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/redis"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/kvtest"
)

func TestConformance(t *testing.T) {
	server := shared.Start(t)
	kvtest.Run(t, func(t *testing.T) kv.Store { return openURL(t, server.URL(newNamespace()), Options{}) })
}

func TestTwoStoresShareANamespace(t *testing.T) {
	ctx := ctxOf(t)
	server, ns := shared.Start(t), newNamespace()
	a, b := openURL(t, server.URL(ns), Options{}), openURL(t, server.URL(ns), Options{})
	ch := watchAll(t, b)
	rev := commit(t, a, set("k", "v"))
	items, _ := next(t, ch)
	if len(items) != 1 || items[0].Key != "k" || items[0].Revision != rev || string(items[0].Value) != "v" {
		t.Fatalf("the other store's watch delivered %+v", items)
	}
	if it, err := b.Get(ctx, "k"); err != nil || it.Revision != rev {
		t.Fatalf("the other store has %+v, %v", it, err)
	}
	if err := a.Acquire(ctx, "l", "a", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := b.Acquire(ctx, "l", "b", time.Minute); !errors.Is(err, kv.ErrLeaseLost) || !strings.Contains(err.Error(), "held by a") {
		t.Fatalf("acquire of the other store's lease: %v", err)
	}
	if owner, _, err := b.Holder(ctx, "l"); owner != "a" || err != nil {
		t.Fatalf("holder %q, %v", owner, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if owner, _, _ := b.Holder(ctx, "l"); owner != "a" {
		t.Fatal("a lease ended with its store, not with its time")
	}
	if _, err := a.Get(ctx, "k"); !errors.Is(err, kv.ErrClosed) {
		t.Fatalf("get of a closed store: %v", err)
	}
	if _, err := a.Watch(ctx, "k"); !errors.Is(err, kv.ErrClosed) {
		t.Fatalf("watch of a closed store: %v", err)
	}
}

func TestNamespacesAreApart(t *testing.T) {
	ctx := ctxOf(t)
	server := shared.Start(t)
	a, b := openURL(t, server.URL(newNamespace()), Options{}), openURL(t, server.URL(newNamespace()), Options{})
	ch := watchAll(t, b)
	commit(t, a, set("k", "a"))
	if _, err := b.Get(ctx, "k"); !errors.Is(err, kv.ErrNotFound) {
		t.Fatalf("get in another namespace: %v", err)
	}
	if items, err := b.Range(ctx, "", "", 10, false); len(items) != 0 || err != nil {
		t.Fatalf("range in another namespace: %v, %v", items, err)
	}
	for _, s := range []*Store{a, b} {
		if err := s.Acquire(ctx, "l", s.name, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, b, set("other", "b"))
	if items, _ := next(t, ch); items[0].Key != "other" {
		t.Fatalf("watch delivered %+v of another namespace", items)
	}
}

func TestReopen(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	s := openURL(t, server.URL(ns), Options{})
	rev := commit(t, s, set("k", "v"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openURL(t, "redis://"+server.Addr, Options{Namespace: ns})
	if it, err := s.Get(ctxOf(t), "k"); err != nil || it.Revision != rev {
		t.Fatalf("%+v, %v", it, err)
	}
}

// TestOpenWaitsForLoading opens a store while the server, slowed down, still reads its file.
func TestOpenWaitsForLoading(t *testing.T) {
	server, ns := redis.Start(t, "--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no"), newNamespace()
	rev := commit(t, openURL(t, server.URL(ns), Options{}), set("k", "v"))
	for i := range 50 { // it looks for requests after each KiB
		do(t, server, "SET", fmt.Sprint("other", i), strings.Repeat("v", 2<<10))
	}
	do(t, server, "SAVE")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	restarted := make(chan error, 1)
	go func() { restarted <- server.Restart() }()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := server.Do("PING"); err != nil && strings.HasPrefix(err.Error(), "LOADING") {
			break
		}
		if time.Since(began) > patient {
			t.Fatal("the server never reads its file")
		}
	}
	log, said := captured()
	if it, err := openURL(t, server.URL(ns), Options{Logger: log}).Get(ctxOf(t), "k"); err != nil || it.Revision != rev {
		t.Errorf("%+v, %v", it, err)
	}
	if n := strings.Count(said(), "still reads its file"); n != 1 {
		t.Errorf("said %d times:\n%s", n, said())
	}
	if err := <-restarted; err != nil {
		t.Error(err)
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	openURL(t, server.URL(ns), Options{})
	do(t, server, "HSET", keysOf(ns).meta, "version", "2")
	if _, err := Open(ctxOf(t), server.URL(ns), Options{Logger: discard()}); !errors.Is(err, ErrVersion) {
		t.Fatalf("open: %v", err)
	}
}

func TestNamespaceWithoutMetaIsRefused(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	commit(t, openURL(t, server.URL(ns), Options{}), set("k", "v"))
	do(t, server, "DEL", keysOf(ns).meta)
	if _, err := Open(ctxOf(t), server.URL(ns), Options{Logger: discard()}); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Fatalf("open: %v", err)
	}
}

func TestEvictionIsRefused(t *testing.T) {
	server := redis.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	_, err := Open(ctxOf(t), server.URL("x"), Options{})
	if err == nil || !strings.Contains(err.Error(), "allkeys-lru") || !strings.Contains(err.Error(), server.Addr) {
		t.Fatalf("open: %v", err)
	}
	do(t, server, "CONFIG", "SET", "maxmemory", "0") // then nothing is ever evicted
	openURL(t, server.URL("x"), Options{})
}

// A managed server forbids CONFIG, and its INFO may be all there is.
func TestServerWithoutConfig(t *testing.T) {
	server := redis.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl")
	for user, not := range map[string]string{"managed": "-config", "blind": "-config|-info"} {
		do(t, server, append([]string{"ACL", "SETUSER", user, "on", "nopass", "~*", "&*", "+@all"}, strings.Split(not, "|")...)...)
	}
	if _, err := Open(ctxOf(t), "redis://managed:any@"+server.Addr, Options{}); err == nil || !strings.Contains(err.Error(), "volatile-ttl") {
		t.Fatalf("open: %v", err)
	}
	logger, lines := captured()
	openURL(t, "redis://blind:any@"+server.Addr, Options{Logger: logger})
	for _, want := range []string{"version of redis", "maxmemory-policy of redis", "writes to disk"} {
		if !strings.Contains(lines(), want) {
			t.Errorf("no warning about %q in:\n%s", want, lines())
		}
	}
}

func TestPersistenceWarning(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "keeps nothing over a restart"},
		{[]string{"--save", "3600 1"}, "last snapshot"},
		{[]string{"--appendonly", "yes"}, ""},
	} {
		logger, lines := captured()
		openURL(t, redis.Start(t, tc.args...).URL("x"), Options{Logger: logger})
		if got := lines(); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%q: logged %q, want %q", tc.args, got, tc.want)
		}
	}
}

func TestServerInfo(t *testing.T) {
	for version, ok := range map[string]bool{
		"2.8.0": false, "5.0.14": false, "6.0.20": false, "6.2.0": true, "7.0.15": true, "7.2.4": true, "8.10.0": true, "": true, "unstable": true,
	} {
		info := serverInfo{}
		info.read("# Server\r\nredis_version:" + version + "\r\nmaxmemory_policy:noeviction\r\n")
		if err := info.check(); (err == nil) != ok {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestURL(t *testing.T) {
	o, ns, err := parseURL("rediss://user:p%40ss@host:7000/3?namespace=prod-1", "ignored")
	if err != nil || ns != "prod-1" || o.Addr != "host:7000" || o.DB != 3 || o.Username != "user" || o.Password != "p@ss" || o.TLSConfig == nil {
		t.Fatalf("%+v %q %v", o, ns, err)
	}
	if o.MaxRetries != -1 {
		t.Fatalf("go-redis would send a request %d times", 1+o.MaxRetries)
	}
	if o, ns, err = parseURL("redis://host", ""); err != nil || ns != defaultNamespace || o.Addr != "host:6379" || o.TLSConfig != nil {
		t.Fatalf("%+v %q %v", o, ns, err)
	}
	for _, bad := range []string{
		"redis://u:secret word@host", "http://u:secret@host", "redis://u:secret@host/x", "redis://u:secret@host:port",
		"redis://u:secret@host?nonsense=1", "redis://u:secret@host?namespace=a%7Bb", "redis://u:sec%ret@host", "u:secret@host",
		"redis://u:secret@host?namespace=" + strings.Repeat("x", 65),
	} {
		if _, _, err := parseURL(bad, ""); err == nil {
			t.Errorf("%s: no error", bad)
		} else if strings.Contains(err.Error(), "sec") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestPassword(t *testing.T) {
	server := redis.Start(t, "--requirepass", "se@cret")
	for _, bad := range []string{"redis://" + server.Addr, "redis://:wrong@" + server.Addr} {
		if _, err := Open(ctxOf(t), bad, Options{Logger: discard()}); !errors.Is(err, kv.ErrUnavailable) || strings.Contains(err.Error(), "wrong@") {
			t.Fatalf("open %s: %v", bad, err)
		}
	}
	commit(t, openURL(t, "redis://:se%40cret@"+server.Addr+"/2", Options{}), set("k", "v"))
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]bool{
		"LOADING Redis is loading the dataset in memory":                                              true,
		"READONLY You can't write against a read only replica.":                                       true,
		"MISCONF Redis is configured to save RDB snapshots":                                           true,
		"OOM command not allowed when used memory > 'maxmemory'.":                                     true,
		"CLUSTERDOWN Hash slot not served":                                                            true,
		"BUSY Redis is busy running a script":                                                         true,
		"NOREPLICAS Not enough good replicas to write.":                                               true,
		"ERR max number of clients reached":                                                           true,
		"ERR Error running script (call to f_1): @user_script:8: @user_script: 8: -OOM command not":   true,
		"ERR Error running script (call to f_1): @user_script:8: -READONLY You can't write against a": true,
		"ERR Error running script (call to f_1): @user_script:8: attempt to index a nil value":        false,
		"WRONGTYPE Operation against a key holding the wrong kind of value":                           false,
	} {
		if got := refused(replyError(text)); got != want {
			t.Errorf("%s: refused %v", text, got)
		}
	}
	if refused(errors.New("LOADING is not said by the server")) || refused(io.EOF) {
		t.Error("an error that is no answer counts as one")
	}
	if err := fault(io.EOF, true); !errors.Is(err, kv.ErrUnknown) {
		t.Error(err)
	}
	if err := fault(io.EOF, false); !errors.Is(err, kv.ErrUnavailable) {
		t.Error(err)
	}
	if err := fault(replyError("OOM x"), true); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Error(err)
	}
}

type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// What the server refuses is kv.ErrUnavailable, and not half done.
func TestServerRefusesWrites(t *testing.T) {
	server := redis.Start(t)
	s := openURL(t, server.URL("x"), Options{})
	commit(t, s, set("k", "before"), set("k2", "before"))
	at, err := s.position(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, on, off string }{
		{"replica", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"},
		{"out of memory", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"},
		{"too few replicas", "CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"},
	} {
		do(t, server, strings.Fields(tc.on)...)
		_, err := s.Commit(ctxOf(t), []kv.Op{{Key: "k2", Delete: true}, set("k", "after")}, nil)
		if !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
			t.Errorf("%s: commit: %v", tc.name, err)
		}
		if err := s.Acquire(ctxOf(t), "l", "o", time.Minute); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("%s: acquire: %v", tc.name, err)
		}
		do(t, server, strings.Fields(tc.off)...)
		items, err := s.Range(ctxOf(t), "", "", 10, false)
		if err != nil || len(items) != 2 || string(items[0].Value) != "before" {
			t.Errorf("%s: after a refused commit: %v, %v", tc.name, items, err)
		}
		if now, err := s.position(ctxOf(t)); now != at || err != nil {
			t.Errorf("%s: a refused commit moved the revision from %d to %d, %v", tc.name, at, now, err)
		}
	}
	commit(t, s, set("k", "after"))
}

func TestNoServer(t *testing.T) {
	server := redis.Start(t)
	s := openURL(t, server.URL("x"), Options{})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := s.Commit(ctxOf(t), []kv.Op{set("k", "v")}, nil); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Get(ctxOf(t), "k"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Watch(ctxOf(t), ""); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("watch: %v", err)
	}
	if _, err := Open(ctxOf(t), server.URL("x"), Options{}); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v to say so", d)
	}
}

// A commit whose answer is lost is kv.ErrUnknown, and is there once.
func TestLostAnswer(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	p := newProxy(t, server.Addr)
	s := openURL(t, p.url(ns), Options{})
	commit(t, s, set("other", "")) // the script is known
	for i := range 5 {
		entries := do(t, server, "XLEN", keysOf(ns).log)
		key := fmt.Sprint("k", i)
		p.set(func() { p.cutAt = "evalsha" })
		_, err := s.Commit(ctxOf(t), []kv.Op{set(key, "v")}, nil)
		if !errors.Is(err, kv.ErrUnknown) || errors.Is(err, kv.ErrUnavailable) {
			t.Fatalf("commit: %v", err)
		}
		if it, err := s.Get(ctxOf(t), key); err != nil || string(it.Value) != "v" {
			t.Fatalf("%q, %v", it.Value, err)
		}
		if now := do(t, server, "XLEN", keysOf(ns).log); now != fmt.Sprint(atoi(t, entries)+1) {
			t.Fatalf("the log went from %s to %s entries", entries, now)
		}
		p.set(func() { p.cutAt = "evalsha" })
		if _, err := s.Get(ctxOf(t), key); !errors.Is(err, kv.ErrUnavailable) {
			t.Fatalf("get whose answer was lost: %v", err)
		}
		p.set(func() { p.cutAt = "evalsha" })
		if err := s.Acquire(ctxOf(t), key, "o", time.Minute); !errors.Is(err, kv.ErrUnknown) {
			t.Fatalf("acquire whose answer was lost: %v", err)
		}
	}
}

func atoi(t testing.TB, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestContextEndsDuringCommit(t *testing.T) {
	server, ns := shared.Start(t), newNamespace()
	p := newProxy(t, server.Addr)
	s := openURL(t, p.url(ns), Options{})
	commit(t, s, set("other", ""))
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	p.set(func() { p.mute = true })
	value := []byte("v")
	_, err := s.Commit(short(), []kv.Op{{Key: "sent", Value: value}}, nil)
	if !errors.Is(err, kv.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("commit that was sent: %v", err)
	}
	copy(value, "X")
	// A connection that does not get through its greeting sends no commit.
	p.cut()
	start := time.Now()
	_, err = s.Commit(short(), []kv.Op{set("unsent", "v")}, nil)
	if errors.Is(err, kv.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("commit that was not sent: %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Fatalf("it returned after %v", d)
	}
	p.set(func() { p.mute = false })
	p.cut()
	direct := openURL(t, server.URL(ns), Options{})
	if it, err := direct.Get(ctxOf(t), "sent"); err != nil || string(it.Value) != "v" {
		t.Fatalf("%q, %v", it.Value, err)
	}
	if _, err := direct.Get(ctxOf(t), "unsent"); !errors.Is(err, kv.ErrNotFound) {
		t.Fatalf("a commit that was said not to be done is there: %v", err)
	}
}

func TestMark(t *testing.T) {
	m := &mark{text: "x"}
	if m.again() {
		t.Error("sent again, though not sent")
	}
	if _, err := m.MarshalBinary(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.MarshalBinary(); err == nil {
		t.Error("written twice")
	}
	if !m.again() {
		t.Error("a refused request is not sent again")
	}
	if m.abandon() {
		t.Error("a request that was not sent counts as sent")
	}
	if _, err := m.MarshalBinary(); err == nil {
		t.Error("an abandoned request was written")
	}
}

func TestScriptsAreForgotten(t *testing.T) {
	server := redis.Start(t)
	s := openURL(t, server.URL("x"), Options{})
	for range 3 {
		commit(t, s, set("k", "v"))
		do(t, server, "SCRIPT", "FLUSH")
	}
}

func BenchmarkCommit(b *testing.B) {
	s := openURL(b, shared.Start(b).URL(newNamespace()), Options{})
	value := make([]byte, 200)
	b.Run("one", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.Commit(context.Background(), []kv.Op{{Key: fmt.Sprint("k", i%1000), Value: value}}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := s.Commit(context.Background(), []kv.Op{{Key: fmt.Sprint("k", i%1000), Value: value}}, nil); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
