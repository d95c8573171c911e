package httpgate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// second starts another gateway beside the first one of g.
func (g *gate) second(o httpgate.Options) *gate {
	g.t.Helper()
	o.Brokers = []string{g.kafka}
	at := serveGateway(g.t, o, func(ln net.Listener) net.Listener { return ln })
	at.admin = g.admin
	return at
}

// ask posts again while another request with the key is at work.
func (g *gate) ask(path, body string, headers ...string) (int, string, http.Header) {
	g.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, answer, h := g.do("POST", path, strings.NewReader(body), headers...)
		if status != 409 || h.Get("Retry-After") == "" || time.Now().After(deadline) {
			return status, answer, h
		}
	}
}

const keyHeader = "Idempotency-Key"

// values counts what is stored in a topic.
func (g *gate) values(topic string) map[string]int {
	g.t.Helper()
	got := map[string]int{}
	for p := g.page("/api/v1/topics/" + topic + "/messages?limit=10000"); ; p = g.page("/api/v1/topics/" + topic + "/messages?limit=10000&cursor=" + p.Next) {
		for _, m := range p.Messages {
			got[*m.Value]++
		}
		if !p.More {
			return got
		}
	}
}

// TestKeys: the same request again gets the same answer, another one with its
// key is refused, whichever gateway it asks and however often.
func TestKeys(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("keyed", 3)
	const path = "/api/v1/topics/keyed/messages"
	other := g.second(httpgate.Options{})
	first := g.want(200, `"offset":0`, "POST", path+"?partition=1", "body", keyHeader, `"a\"b"`)
	lines := `{"key":"x","value":1}` + "\n" + `{"value":2}` + "\n\n" + `{"key":"y","value":3,"partition":0}` + "\n" + `{"value":4}`
	many := g.want(200, `{"done":true,"lines":4,"produced":4,"failed":0}`, "POST", path+"?format=records", lines, keyHeader, "bare", "Content-Type", ndjson)
	fresh := g.second(httpgate.Options{})
	for i, again := range []*gate{g, other, fresh, g, fresh} {
		status, answer, _ := again.ask(path+"?partition=1", "body", keyHeader, `"a\"b"`)
		if status != 200 || answer != first {
			t.Errorf("again %d: %d %s, first %s", i, status, answer, first)
		}
		status, answer, h := again.ask(path+"?format=records", lines, keyHeader, `"bare"`, "Content-Type", ndjson)
		if status != 200 || answer != many || i > 1 && h.Get("Idempotency-Replayed") != "true" {
			t.Errorf("again %d: %d %v %s, first %s", i, status, h, answer, many)
		}
		again.want(422, `"error_code":422`, "POST", path+"?partition=1", "other body", keyHeader, `"a\"b"`)
		again.want(422, `"error_code":422`, "POST", path+"?partition=2", "body", keyHeader, `"a\"b"`)
		again.want(422, `"error_code":422`, "POST", path+"?partition=1", "body", keyHeader, `"a\"b"`, "X-Header-A", "b")
	}
	if got, want := g.values("keyed"), (map[string]int{"body": 1, "1": 1, "2": 1, "3": 1, "4": 1}); !maps.Equal(got, want) {
		t.Errorf("stored: %v", got)
	}
	for _, bad := range []string{"", `"`, `"a`, `a"b`, "a b", "\xff", strings.Repeat("x", 256), `"a", "b"`, `"a\n"`} {
		g.want(400, keyHeader, "POST", path, "x", keyHeader, bad)
	}
	for _, c := range []struct{ status, body string }{{"42203", "1\n{"}, {"42203", "\xff"}, {"413", `"` + strings.Repeat("x", 1_000_001) + `"`}, {"413", strings.Repeat(`"`+strings.Repeat("x", 400_000)+"\"\n", 3)}} {
		got, answer, _ := g.do("POST", path+"?partition=0", strings.NewReader(c.body), keyHeader, "refused", "Content-Type", ndjson)
		if !strings.HasPrefix(c.status, fmt.Sprint(got)) || !strings.Contains(answer, c.status) {
			t.Errorf("body %.20q: %d %s", c.body, got, answer)
		}
	}
	g.want(200, `"produced":1`, "POST", path, "5", keyHeader, "refused", "Content-Type", ndjson) // its key was not used up
	g.want(200, `{"done":true,"lines":0`, "POST", path, "\n", keyHeader, "empty", "Content-Type", ndjson)
	g.want(404, "40401", "POST", "/api/v1/topics/none/messages", "x", keyHeader, "none")
}

// TestKeysTogether sends each key through three gateways at once: one request
// stores, the others are told to come again or get its answer.
func TestKeysTogether(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("race", 2)
	gates := []*gate{g, g.second(httpgate.Options{}), g.second(httpgate.Options{})}
	const keys = 60
	var wg sync.WaitGroup
	answers := make([][3]string, keys)
	for i := range keys {
		for j, at := range gates {
			wg.Go(func() {
				status, answer, _ := at.ask("/api/v1/topics/race/messages", fmt.Sprint("v", i), keyHeader, fmt.Sprint("k", i))
				if answers[i][j] = answer; status != 200 {
					t.Errorf("key %d: %d %s", i, status, answer)
				}
			})
		}
	}
	wg.Wait()
	got := g.values("race")
	for i := range keys {
		if got[fmt.Sprint("v", i)] != 1 || answers[i][0] != answers[i][1] || answers[i][1] != answers[i][2] {
			t.Errorf("key %d: stored %d times, answers %q", i, got[fmt.Sprint("v", i)], answers[i])
		}
	}
	if len(got) != keys {
		t.Errorf("%d values", len(got))
	}
}

// cutter cuts connections to the brokers on which a word comes by.
type cutter struct {
	mode atomic.Int32 // cutNone, cutRequest, cutAnswer
	word atomic.Pointer[[]byte]
	cuts atomic.Int64
}

const (
	cutNone    = iota
	cutRequest // before the request with the word is sent
	cutAnswer  // before the answer to it comes
)

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	return &cutConn{Conn: conn, c: c}, err
}

type cutConn struct {
	net.Conn
	c   *cutter
	cut atomic.Bool
}

var errCut = errors.New("cut by the test")

func (c *cutConn) Write(b []byte) (int, error) {
	if w := c.c.word.Load(); w != nil && bytes.Contains(b, *w) && bytes.HasPrefix(b[4:], []byte{0, 0}) { // a produce
		switch c.c.mode.Load() {
		case cutRequest:
			c.c.cuts.Add(1)
			c.Conn.Close()
			return 0, errCut
		case cutAnswer:
			c.cut.Store(true)
		}
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.Load() && n > 0 {
		c.c.cuts.Add(1)
		c.Conn.Close()
		return 0, errCut
	}
	return n, err
}

// TestKeysCut ends a gateway's requests at each of their steps, and asks again
// through it, or through a new one.
func TestKeysCut(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("cut", 3)
	g.topic("warm", 1)
	g.want(200, "", "POST", "/api/v1/topics/warm/messages", "x", keyHeader, "warm")
	ids := func(name string) []byte {
		d, err := g.admin.ListTopics(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		id := d[name].ID
		return id[:]
	}
	want := map[string]int{}
	for i, c := range []struct {
		name, topic string
		mode        int32
		restart     bool
	}{
		{"key not stored", httpgate.KeyTopic, cutRequest, true},
		{"key stored, answer lost", httpgate.KeyTopic, cutAnswer, true},
		{"batches not sent", "cut", cutRequest, false},
		{"batches not sent, restart", "cut", cutRequest, true},
		{"batches stored, answer lost", "cut", cutAnswer, false},
		{"batches stored, answer lost, restart", "cut", cutAnswer, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &gate{t: t, url: g.url, addr: g.addr, kafka: g.kafka, admin: g.admin}
			cut := &cutter{}
			word := ids(c.topic)
			cut.word.Store(&word)
			at := g.second(httpgate.Options{Dial: cut.dial, Limits: httpgate.Limits{DeliveryTime: time.Second}})
			at.want(200, "", "POST", "/api/v1/topics/cut/messages", fmt.Sprint("before", i), keyHeader, fmt.Sprint("before", i))
			want[fmt.Sprint("before", i)]++
			var body strings.Builder
			for n := range 20 {
				fmt.Fprintf(&body, "{\"key\":\"%d\",\"value\":\"%d.%d\",\"timestamp\":1000}\n", n, i, n)
				want[fmt.Sprintf("%d.%d", i, n)]++
			}
			ask := func(g *gate) (int, string) {
				status, answer, _ := g.ask("/api/v1/topics/cut/messages?format=records", body.String(), keyHeader, fmt.Sprint("key", i), "Content-Type", ndjson)
				return status, answer
			}
			cut.mode.Store(c.mode)
			for n := range 2 {
				if status, answer := ask(at); n > 0 && status == 200 { // by the key that is stored
				} else if status != 500 && status != 503 || !strings.Contains(answer, "error_code") {
					t.Fatalf("cut: %d %s", status, answer)
				}
			}
			if cut.cuts.Load() == 0 {
				t.Fatal("nothing was cut")
			}
			cut.mode.Store(cutNone)
			if c.restart {
				at = g.second(httpgate.Options{})
			}
			var last string
			for range 3 {
				status, answer := ask(at)
				if status != 200 || !strings.Contains(answer, `"produced":20,"failed":0`) || last != "" && last != answer {
					t.Fatalf("again: %d %s, before %s", status, answer, last)
				}
				last = answer
			}
		})
	}
	if got := g.values("cut"); !maps.Equal(got, want) {
		t.Errorf("stored: %v, want %v", got, want)
	}
}

// TestKeysSlots uses few producer ids for many keys on many partitions, in
// random order with lost answers between, so that no sequence fits by chance.
func TestKeysSlots(t *testing.T) {
	g := start(t, httpgate.Limits{})
	g.topic("slots", 4)
	cut := &cutter{}
	d, err := g.admin.ListTopics(t.Context(), "slots")
	if err != nil {
		t.Fatal(err)
	}
	id := d["slots"].ID
	word := id[:]
	cut.word.Store(&word)
	at := g.second(httpgate.Options{Dial: cut.dial, Limits: httpgate.Limits{DeliveryTime: 5 * time.Second}})
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		cut.mode.Store(cutNone)
		if random.IntN(10) == 0 {
			cut.mode.Store(cutAnswer)
			time.AfterFunc(time.Duration(random.IntN(200))*time.Millisecond, func() { cut.mode.Store(cutNone) })
		}
		at.want(200, `"offset"`, "POST", fmt.Sprintf("/api/v1/topics/slots/messages?partition=%d", random.IntN(4)), fmt.Sprint(i), keyHeader, fmt.Sprint(i))
	}
	for v, n := range g.values("slots") {
		if n != 1 {
			t.Errorf("value %s is stored %d times", v, n)
		}
	}
	var offsets kadm.ListedOffsets
	if offsets, err = g.admin.ListEndOffsets(t.Context(), "slots"); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	offsets.Each(func(o kadm.ListedOffset) { total += o.Offset })
	if total != 300 || cut.cuts.Load() == 0 {
		t.Errorf("%d records, %d cuts", total, cut.cuts.Load())
	}
}

// keyClock is the time of the idempotency keys of some gateways; it stands still.
type keyClock struct{ ms atomic.Int64 }

func (c *keyClock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *keyClock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// TestKeysExpire: a key is answered from the store for 24 h and is new a
// millisecond later, in every gateway; memory is kept for those that count.
func TestKeysExpire(t *testing.T) {
	const path = "/api/v1/topics/aged/messages"
	const limit = 6
	g := start(t, httpgate.Limits{MaxKeys: limit})
	g.topic("aged", 1)
	var clock keyClock
	clock.ms.Store(time.Now().Add(-60 * time.Hour).UnixMilli()) // brokers refuse what is of the future
	g.s.SetKeyClock(clock.now)
	// expect asks until the answer comes from the store, or as long as it does not.
	expect := func(g *gate, key, body string, offset int, replayed bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			status, answer, h := g.ask(path, body, keyHeader, key)
			if status != 200 || !strings.Contains(answer, fmt.Sprintf(`"offset":%d,`, offset)) {
				t.Fatalf("%s: %d %s, want offset %d", key, status, answer, offset)
			}
			if got := h.Get("Idempotency-Replayed") == "true"; got == replayed {
				return
			}
			if !replayed || time.Now().After(deadline) {
				t.Fatalf("%s: replayed %v", key, !replayed)
			}
		}
	}
	remembered := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); g.s.RememberedKeys() != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d keys are remembered, want %d", g.s.RememberedKeys(), want)
			}
		}
	}
	for i := range 4 {
		expect(g, fmt.Sprint("old-", i), "old", i, false)
		expect(g, fmt.Sprint("old-", i), "old", i, true) // its end is stored
	}
	clock.advance(23 * time.Hour)
	expect(g, "young", "young", 4, false)
	expect(g, "young", "young", 4, true)
	clock.advance(time.Hour)
	expect(g, "old-0", "old", 0, true)
	g.want(422, `"error_code":422`, "POST", path, "other", keyHeader, "old-1")
	clock.advance(time.Millisecond)
	expect(g, "old-0", "old", 5, false)
	expect(g, "old-1", "other", 6, false)
	expect(g, "young", "young", 4, true)
	remembered(3) // old-2 and old-3 are gone though nobody asked for them
	fresh := g.second(httpgate.Options{Limits: httpgate.Limits{MaxKeys: limit}})
	fresh.s.SetKeyClock(clock.now)
	expect(fresh, "old-0", "old", 5, true)
	expect(fresh, "young", "young", 4, true)
	expect(fresh, "old-2", "old", 7, false)
	for i := range limit - 4 {
		expect(g, fmt.Sprint("more-", i), "more", 8+i, false)
	}
	remembered(limit)
	g.want(429, "429001", "POST", path, "x", keyHeader, "too-many")
	clock.advance(24*time.Hour + time.Millisecond)
	expect(g, "old-0", "old", 10, false) // there is room at once
	remembered(1)
}
