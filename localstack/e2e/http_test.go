package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// httpPost posts to the node's gateway; headers are pairs of name and value.
func httpPost(ctx context.Context, n *Node, path string, body io.Reader, headers ...string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.HTTP+path, body)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// httpRead reads a topic by cursor from its beginning.
func httpRead(t *testing.T, n *Node, topic string, each func(value string)) {
	t.Helper()
	for cursor := ""; ; {
		resp, err := http.Get("http://" + n.HTTP + "/api/v1/topics/" + topic + "/messages?limit=10000&max_bytes=4000000" + cursor)
		if err != nil {
			t.Fatal(err)
		}
		var page struct {
			Messages []struct{ Value string }
			Next     string
			More     bool
		}
		err = json.NewDecoder(resp.Body).Decode(&page)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("read %s: %s, %v", topic, resp.Status, err)
		}
		for _, m := range page.Messages {
			each(m.Value)
		}
		if cursor = "&cursor=" + page.Next; !page.More {
			return
		}
	}
}

// TestHTTPRoundTrip stores 100,000 lines, reads them by cursor and tails them
// with 100 cuts: all three have the same SHA-256.
func TestHTTPRoundTrip(t *testing.T) {
	const lines, cuts = 100_000, 100
	n := NewNode(t, NodeOptions{})
	if err := n.CLI(io.Discard, "topic", "create", "lines", "-p", "1"); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for i := range lines {
		fmt.Fprintf(&all, "{\"n\":%d,\"sum\":\"%x\"}\n", i, sha256.Sum256(fmt.Append(nil, i)))
	}
	want := sha256.Sum256([]byte(all.String()))
	began := time.Now()
	status, answer, err := httpPost(t.Context(), n, "/api/v1/topics/lines/messages?report=errors", strings.NewReader(all.String()), "Content-Type", "application/x-ndjson")
	if err != nil || status != 200 || strings.TrimSpace(answer) != `{"done":true,"lines":100000,"produced":100000,"failed":0}` {
		t.Fatalf("produce: %d %.300s, %v", status, answer, err)
	}
	produced := time.Since(began)
	sum := sha256.New()
	began = time.Now()
	httpRead(t, n, "lines", func(v string) { io.WriteString(sum, v+"\n") })
	if [32]byte(sum.Sum(nil)) != want {
		t.Error("read by cursor: other bytes")
	}
	read := time.Since(began)
	sum, began = sha256.New(), time.Now()
	id, got := "", 0
	for cut := 0; got < lines; cut++ {
		err := tailSome(n, "lines", &id, func(offset int64, v string) bool {
			if offset != int64(got) {
				t.Fatalf("cut %d: offset %d follows %d", cut, offset, got-1)
			}
			io.WriteString(sum, v+"\n")
			got++
			return got < lines && (cut >= cuts || got%(lines/(cuts+1)) != 0)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if [32]byte(sum.Sum(nil)) != want {
		t.Error("tailed: other bytes")
	}
	mb := float64(all.Len()) / 1e6
	t.Logf("%d lines, %.1f MB: produced in %v, read in %v, tailed in %v with %d cuts", lines, mb, produced, read, time.Since(began), cuts)
}

// tailSome tails a topic from *id on, or from its beginning, and keeps the id,
// until each tells false; then it cuts the connection.
func tailSome(n *Node, topic string, id *string, each func(offset int64, value string) bool) error {
	conn, err := net.Dial("tcp", n.HTTP)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	last := ""
	if *id != "" {
		last = "Last-Event-ID: " + *id + "\r\n"
	}
	fmt.Fprintf(conn, "GET /api/v1/topics/%s/stream?from=earliest HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n%s\r\n", topic, last)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("tail: %s", resp.Status)
	}
	in := bufio.NewReader(resp.Body)
	for pending := ""; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			pending = strings.TrimSpace(v)
		}
		v, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var rec struct {
			Offset int64
			Value  string
		}
		if err := json.Unmarshal([]byte(v), &rec); err != nil {
			return err
		}
		*id = pending
		if !each(rec.Offset, rec.Value) {
			return nil
		}
	}
}

// TestHTTPKeysKill kills the node again and again while requests with
// idempotency keys are at work, and asks every key again: each is stored once.
func TestHTTPKeysKill(t *testing.T) {
	const rounds, workers = 3, 8
	n := NewNode(t, NodeOptions{})
	if err := n.CLI(io.Discard, "topic", "create", "keyed", "-p", "3"); err != nil {
		t.Fatal(err)
	}
	const path = "/api/v1/topics/keyed/messages?format=records"
	var asked atomic.Int64
	body := func(i int64) string { // in all partitions, with timestamps long gone
		return fmt.Sprintf("{\"value\":\"%d.0\",\"partition\":0,\"timestamp\":1000}\n{\"value\":\"%d.1\",\"partition\":1}\n{\"value\":\"%d.2\",\"partition\":2}\n", i, i, i)
	}
	unanswered := 0
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		first := asked.Load()
		var lost sync.Map
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for ctx.Err() == nil {
					i := asked.Add(1)
					if status, _, err := httpPost(ctx, n, path, strings.NewReader(body(i)), "Idempotency-Key", fmt.Sprint("key-", i), "Content-Type", "application/x-ndjson"); err != nil || status != 200 {
						lost.Store(i, true)
						if err != nil {
							return // the node is dead
						}
					}
				}
			})
		}
		time.Sleep(time.Duration(500+rand.IntN(500)) * time.Millisecond)
		n.Kill()
		cancel()
		wg.Wait()
		n.Start()
		lost.Range(func(any, any) bool { unanswered++; return true })
		if asked.Load()-first < workers*2 {
			t.Fatalf("round %d: only %d requests", round, asked.Load()-first)
		}
		for i := first + 1; i <= asked.Load(); i++ {
			askAgain(t, n, path, body(i), fmt.Sprint("key-", i))
		}
	}
	got := map[string]int{}
	httpRead(t, n, "keyed", func(v string) { got[v]++ })
	for i := range asked.Load() {
		for p := range 3 {
			if v := fmt.Sprintf("%d.%d", i+1, p); got[v] != 1 {
				t.Errorf("value %s is stored %d times", v, got[v])
			}
		}
	}
	t.Logf("%d keys, %d of them without an answer before the kill", asked.Load(), unanswered)
}

func askAgain(t *testing.T, n *Node, path, body, key string) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer, err := httpPost(t.Context(), n, path, strings.NewReader(body), "Idempotency-Key", key, "Content-Type", "application/x-ndjson")
		if err == nil && status == 200 && strings.Contains(answer, `"produced":3,"failed":0`) {
			return
		}
		if time.Now().After(deadline) || err == nil && status/100 == 4 && status != 409 && status != 429 {
			t.Fatalf("key %s again: %d %s, %v", key, status, answer, err)
		}
	}
}

// TestHTTPIdleTails holds 10,000 idle streams and prints what one costs the
// process.
func TestHTTPIdleTails(t *testing.T) {
	const clients, target = 10_000, 64 << 10
	n := NewNode(t, NodeOptions{})
	if err := n.CLI(io.Discard, "topic", "create", "idle", "-p", "3"); err != nil {
		t.Fatal(err)
	}
	id := ""
	if err := tailOnce(n, &id); err != nil {
		t.Fatal(err)
	}
	before, _, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, clients)
	var g group
	for w := range 8 {
		g.Go(func() error {
			for i := w; i < clients; i += 8 {
				conn, err := net.Dial("tcp", n.HTTP)
				if err != nil {
					return err
				}
				conns[i] = conn
				conn.SetDeadline(time.Now().Add(2 * time.Minute))
				fmt.Fprint(conn, "GET /api/v1/topics/idle/stream HTTP/1.1\r\nHost: x\r\n\r\n")
				b := make([]byte, 1024)
				got := 0
				for !strings.Contains(string(b[:got]), "id: ") {
					m, err := conn.Read(b[got:])
					if err != nil {
						return fmt.Errorf("client %d: %w: %s", i, err, b[:got])
					}
					got += m
				}
			}
			return nil
		})
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	after, _, err := rss(n.Pid())
	if err != nil {
		t.Fatal(err)
	}
	each := (after - before) / clients
	t.Logf("%d idle streams: %d bytes each (resident memory of the process %d MiB, before %d MiB)", clients, each, after>>20, before>>20)
	if each > target {
		t.Errorf("an idle stream takes %d bytes, the target is %d", each, target)
	}
	if status, answer, err := httpPost(t.Context(), n, "/api/v1/topics/idle/messages", strings.NewReader("to all")); err != nil || status != 200 {
		t.Fatalf("produce: %d %s, %v", status, answer, err)
	}
	for i, conn := range conns {
		in := bufio.NewReaderSize(conn, 512)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
			if strings.HasPrefix(line, "data: ") && strings.Contains(line, "to all") {
				break
			}
		}
	}
}

// tailOnce makes the topic's shared reader before memory is measured.
func tailOnce(n *Node, id *string) error {
	if _, _, err := httpPost(context.Background(), n, "/api/v1/topics/idle/messages", strings.NewReader("x")); err != nil {
		return err
	}
	return tailSome(n, "idle", id, func(int64, string) bool { return false })
}
