package httpgate_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// calls counts reads and writes of connections: a system call each, at least.
type calls struct{ n atomic.Int64 }

type countedConn struct {
	net.Conn
	c *calls
}

func (c countedConn) Read(p []byte) (int, error) {
	c.c.n.Add(1)
	return c.Conn.Read(p)
}

func (c countedConn) Write(p []byte) (int, error) {
	c.c.n.Add(1)
	return c.Conn.Write(p)
}

type countedListener struct {
	net.Listener
	c *calls
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countedConn{c, l.c}, err
}

// cost is what requests took of this process, brokers and client with it; the
// client of the measurement allocates nothing.
type cost struct{ allocs, bytes, http, kafka float64 }

// costs measures a request that is sent again and again.
type costs struct {
	t           *testing.T
	http, kafka calls
	conn        net.Conn
	request     []byte
	answer      []byte
	end         []byte // of the answer
}

func newCosts(t *testing.T, media, body, end string) *costs {
	g := start(t, httpgate.Limits{})
	g.topic("cost", 1)
	c := &costs{t: t, answer: make([]byte, 0, 4<<20), end: []byte(end)}
	if media == ndjson { // the answer is in chunks, which end anywhere
		c.end = []byte("\r\n0\r\n\r\n")
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		return countedConn{conn, &c.kafka}, err
	}
	at := serveGateway(t, httpgate.Options{Brokers: []string{g.kafka}, Dial: dial}, func(ln net.Listener) net.Listener { return countedListener{ln, &c.http} })
	var err error
	if c.conn, err = net.Dial("tcp", at.addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	c.request = fmt.Appendf(nil, "POST /api/v1/topics/cost/messages HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", media, len(body), body)
	c.send()
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.answer)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(b), end) {
		t.Fatalf("%v, %.300q…%q, want %q at the end", err, b, b[max(0, len(b)-300):], end)
	}
	return c
}

// send makes one request.
func (c *costs) send() {
	if _, err := c.conn.Write(c.request); err != nil {
		c.t.Fatal(err)
	}
	for c.answer = c.answer[:0]; !bytes.HasSuffix(c.answer, c.end); {
		n, err := c.conn.Read(c.answer[len(c.answer):cap(c.answer)])
		if err != nil {
			c.t.Fatalf("%v after %.300q…%q", err, c.answer, c.answer[max(0, len(c.answer)-300):])
		}
		c.answer = c.answer[:len(c.answer)+n]
	}
	if !bytes.HasPrefix(c.answer, []byte("HTTP/1.1 200 ")) {
		c.t.Fatalf("%.300q", c.answer)
	}
}

// of returns the least that a request took in some rounds, for each of units:
// what the process does beside only adds.
func (c *costs) of(requests, units int) cost {
	var least cost
	for round := range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h, k := c.http.n.Load(), c.kafka.n.Load()
		for range requests {
			c.send()
		}
		h, k = c.http.n.Load()-h, c.kafka.n.Load()-k
		runtime.ReadMemStats(&after)
		n := float64(requests * units)
		got := cost{float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n, float64(h) / n, float64(k) / n}
		if round == 0 {
			least = got
		}
		least = cost{min(least.allocs, got.allocs), min(least.bytes, got.bytes), min(least.http, got.http), min(least.kafka, got.kafka)}
	}
	c.t.Logf("%.2f allocations, %.0f bytes, %.3f calls of HTTP connections, %.3f of those to the brokers", least.allocs, least.bytes, least.http, least.kafka)
	return least
}

func (c *costs) check(what string, got, most float64) {
	c.t.Helper()
	if got > most {
		c.t.Errorf("%.2f %s, want at most %.2f", got, what, most)
	}
}

// A line of NDJSON costs one allocation, what is told when it is stored, and
// those of its batch and its body by share.
func TestLineCosts(t *testing.T) {
	if underRace {
		t.Skip("the race detector drops what is pooled, so requests allocate more")
	}
	const lines = 10_000
	c := newCosts(t, ndjson, testLines(lines), fmt.Sprintf(`{"done":true,"lines":%d,"produced":%d,"failed":0}`+"\n", lines, lines))
	got := c.of(5, lines)
	c.check("allocations per line", got.allocs, 1.5)
	c.check("bytes allocated per line of 84", got.bytes, 450)
	c.check("reads and writes of HTTP connections per line", got.http, 0.05)
	c.check("reads and writes of broker connections per line", got.kafka, 0.01)
}

// A body that is one record, alone in its batch, costs what net/http, the Kafka
// client and the broker allocate for a request; three system calls on its
// connection and two on the client's to the broker.
func TestRawCosts(t *testing.T) {
	if underRace {
		t.Skip("the race detector drops what is pooled, so requests allocate more")
	}
	c := newCosts(t, "application/octet-stream", strings.Repeat("x", 1000), "}\n")
	got := c.of(300, 1)
	c.check("allocations per request", got.allocs, 97)
	c.check("bytes allocated per request with 1,000", got.bytes, 10_000)
	c.check("reads and writes of HTTP connections per request", got.http, 3.1)
	c.check("reads and writes of broker connections per request", got.kafka, 2.1)
}

// A page costs the batches that it is in, not all that one fetch brings.
func TestPageCosts(t *testing.T) {
	if underRace {
		t.Skip("the race detector drops what is pooled, so requests allocate more")
	}
	const lines = 60_000
	c := newCosts(t, ndjson, testLines(lines), fmt.Sprintf(`{"done":true,"lines":%d,"produced":%d,"failed":0}`+"\n", lines, lines))
	c.request, c.end = []byte("GET /api/v1/topics/cost/messages?limit=10 HTTP/1.1\r\nHost: x\r\n\r\n"), []byte(`"more":true}`+"\n")
	got := c.of(50, 1)
	c.check("MB allocated per page", got.bytes/1e6, 3)
}
