package dynamo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// fault is what the proxy does to a request.
type fault int

const (
	pass     fault = iota
	drop           // carry it out, then cut the connection
	lose           // cut the connection at once
	throttle       // refuse: nothing is done
	breakIt        // carry it out, answer 500
	stall          // carry it out, answer nothing
)

// proxy stands before the server and asks choose about every request, by the
// name of its operation.
func proxy(t *testing.T, choose func(op string) fault) (endpoint string) {
	t.Helper()
	return bodyProxy(t, func(op, _ string) fault { return choose(op) })
}

func bodyProxy(t *testing.T, choose func(op, body string) fault) (endpoint string) {
	t.Helper()
	target := local.Start(t)
	client := &http.Client{Transport: &http.Transport{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		body, _ := io.ReadAll(r.Body)
		f := choose(op, string(body))
		if f == lose {
			panic(http.ErrAbortHandler)
		}
		if f == throttle {
			fail(w, 400, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException")
			return
		}
		req, _ := http.NewRequest(r.Method, target+r.URL.Path, bytes.NewReader(body))
		req.Header = r.Header.Clone()
		resp, err := client.Do(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		switch f {
		case drop:
			panic(http.ErrAbortHandler)
		case stall:
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		case breakIt:
			fail(w, 500, "com.amazonaws.dynamodb.v20120810#InternalServerError")
			return
		}
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(func() {
		srv.Close()
		client.CloseIdleConnections()
	})
	return srv.URL
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"__type":%q,"message":"told so"}`, code)
}

// TestLostAnswers: a commit whose answer is lost is sent again and succeeds,
// once; its own success is no conflict.
func TestLostAnswers(t *testing.T) {
	for name, f := range map[string]fault{"cut": drop, "error 500": breakIt, "request lost": lose, "no answer": stall} {
		t.Run(name, func(t *testing.T) {
			ctx, rounds, opts := testCtx(t), 15, testOptions()
			if f == stall {
				rounds, opts.Timeout = 3, 300*time.Millisecond
			}
			var n, faults atomic.Int64
			s := openAt(t, proxy(t, func(op string) fault {
				if op == "TransactWriteItems" && n.Add(1)%2 == 1 {
					faults.Add(1)
					return f
				}
				return pass
			}), fresh(), opts)
			var rev kv.Revision
			for i := range rounds {
				revs, err := s.Commit(ctx, []kv.Op{set("k", strconv.Itoa(i)), set("new/"+strconv.Itoa(i), "")},
					[]kv.Precondition{{Key: "k", Revision: rev}, {Key: "new/" + strconv.Itoa(i)}})
				if err != nil {
					t.Fatalf("commit %d: %v", i, err)
				}
				if it := wantValue(t, s, "k", strconv.Itoa(i)); it.Revision != revs[0] {
					t.Fatalf("commit %d: revision %d was told, %d is there", i, revs[0], it.Revision)
				}
				rev = revs[0]
			}
			if faults.Load() < int64(rounds) {
				t.Fatalf("only %d answers were lost", faults.Load())
			}
		})
	}
}

// TestNoAnswer: when no answer comes at all the outcome of a commit is unknown,
// and a read is unavailable.
func TestNoAnswer(t *testing.T) {
	ctx := testCtx(t)
	var cut atomic.Bool
	prefix, opts := fresh(), testOptions()
	opts.Budget = 300 * time.Millisecond
	s := openAt(t, proxy(t, func(op string) fault {
		if cut.Load() {
			return drop
		}
		return pass
	}), prefix, opts)
	mustCommit(t, s, set("k", "0"))
	cut.Store(true)
	start := time.Now()
	if _, err := s.Commit(ctx, []kv.Op{set("k", "1")}, nil); !errors.Is(err, kv.ErrUnknown) {
		t.Fatalf("commit: %v", err)
	}
	if _, err := s.Get(ctx, "k"); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("get: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("took %v", d)
	}
	cut.Store(false)
	wantValue(t, s, "k", "1") // it had been done
	mustCommit(t, s, set("k", "2"))
}

// TestRefusedConnection: nothing was done, and that is what is said.
func TestRefusedConnection(t *testing.T) {
	ctx := testCtx(t)
	opts := testOptions()
	opts.Budget = 200 * time.Millisecond
	srv := httptest.NewServer(http.NotFoundHandler())
	s := openAt(t, local.Start(t), fresh(), opts)
	closed := srv.URL
	srv.Close()
	o := s.api.Options()
	o.BaseEndpoint = &closed
	s.api = dynamodbNew(o)
	if _, err := s.Commit(ctx, []kv.Op{set("k", "1")}, nil); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Fatalf("commit: %v", err)
	}
}

// TestThrottling: with half of the requests refused everything still works.
func TestThrottling(t *testing.T) {
	ctx := testCtx(t)
	var all atomic.Bool
	opts := testOptions()
	opts.Poll = 100 * time.Millisecond
	prefix := fresh()
	endpoint := proxy(t, func(string) fault {
		if all.Load() || rand.IntN(2) == 0 {
			return throttle
		}
		return pass
	})
	s := openAt(t, endpoint, prefix, opts)
	ch, err := s.Watch(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		mustCommit(t, s, set("k", strconv.Itoa(i)), set("l", strconv.Itoa(i)))
		items, err := s.Range(ctx, "", "", 10, false)
		if err != nil || len(items) != 2 || string(items[0].Value) != strconv.Itoa(i) || string(items[1].Value) != strconv.Itoa(i) {
			t.Fatalf("%v, %v", items, err)
		}
		if err := s.Acquire(ctx, "lease", "me", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	for last := ""; last != "9"; {
		items, ok := <-ch
		if !ok {
			t.Fatal("the watch ended")
		}
		last = string(items[len(items)-1].Value)
	}
	impatient := openAt(t, endpoint, prefix, opts)
	impatient.opts.Budget = 200 * time.Millisecond // it has no watches, so nobody else looks
	all.Store(true)
	if _, err := impatient.Commit(ctx, []kv.Op{set("k", "never")}, nil); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Fatalf("commit: %v", err)
	}
	all.Store(false)
	wantValue(t, s, "k", "9")
}

// TestLostLeaseAnswers: a lease whose renewal was carried out is not lost
// because the answer was.
func TestLostLeaseAnswers(t *testing.T) {
	ctx, prefix := testCtx(t), fresh()
	var n atomic.Int64
	s := openAt(t, proxy(t, func(op string) fault {
		if op == "UpdateItem" && n.Add(1)%2 == 1 {
			return drop
		}
		return pass
	}), prefix, testOptions())
	for range 5 {
		if err := s.Acquire(ctx, "l", "me", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Release(ctx, "l", "me"); err != nil {
		t.Fatal(err)
	}
	if err := openStore(t, prefix).Acquire(ctx, "l", "you", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	// A takeover too.
	for start := time.Now(); s.Acquire(ctx, "l", "me", time.Minute) != nil; {
		if time.Since(start) > 10*time.Second {
			t.Fatal("the expired lease can't be had")
		}
	}
}

// TestReadsAreConsistent: every read asks for what is there now. DynamoDB Local never answers with
// anything older, so the requests are looked at.
func TestReadsAreConsistent(t *testing.T) {
	ctx := testCtx(t)
	var reads, transactions atomic.Int64
	s := openAt(t, bodyProxy(t, func(op, body string) fault {
		switch op {
		case "GetItem", "BatchGetItem", "Query", "Scan":
			reads.Add(1)
			if !strings.Contains(body, `"ConsistentRead":true`) {
				t.Errorf("%s may be answered with old items: %s", op, body)
			}
		case "TransactGetItems": // is always consistent
			transactions.Add(1)
		}
		return pass
	}), fresh(), testOptions())
	ch, err := s.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, set("k", "1"), set("l", "1"))
	<-ch
	wantValue(t, s, "k", "1")
	if items, err := s.Range(ctx, "", "", 10, false); err != nil || len(items) != 2 {
		t.Fatalf("%v, %v", items, err)
	}
	for range 2 {
		if err := s.Acquire(ctx, "lease", "me", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Acquire(ctx, "lease", "you", time.Minute); !errors.Is(err, kv.ErrLeaseLost) {
		t.Fatal(err)
	}
	if owner, _, err := s.Holder(ctx, "lease"); owner != "me" || err != nil {
		t.Fatalf("holder %q, %v", owner, err)
	}
	if reads.Load() < 4 {
		t.Errorf("%d reads and %d transactions were seen", reads.Load(), transactions.Load())
	}
}
