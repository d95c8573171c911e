package faultproxy

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a proxy in front of a store that answers with a body of 1,000
// bytes, and what counts the requests that reach the store.
func start(t *testing.T) (*Proxy, *http.Client, *atomic.Int64) {
	t.Helper()
	var reached atomic.Int64
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		w.Header().Set("Seen-Host", r.Host)
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	}))
	free := httptest.NewUnstartedServer(nil) // only for its address
	addr := free.Listener.Addr().String()
	if err := free.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := New(addr, store.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
	t.Cleanup(func() {
		c.CloseIdleConnections()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		store.Close()
	})
	return p, c, &reached
}

func get(c *http.Client, p *Proxy) (status, n int, err error) {
	resp, err := c.Get(p.URL() + "/a")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, len(b), err
}

func TestPassesOn(t *testing.T) {
	p, c, _ := start(t)
	req, err := http.NewRequest(http.MethodPut, p.URL()+"/a", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "signed.example:1"
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 1000 || resp.Header.Get("Seen-Host") != req.Host {
		t.Errorf("%d bytes, %v, host %q", len(b), err, resp.Header.Get("Seen-Host"))
	}
}

func TestFaults(t *testing.T) {
	for fault, rates := range map[Fault]Rates{
		Busy:  {BusyEvery: time.Hour, BusyFor: time.Hour},
		Slow:  {Slow: 1, Delay: 300 * time.Millisecond},
		Lost:  {Lost: 1, Hold: 300 * time.Millisecond},
		Cut:   {Cut: 1},
		Reset: {Reset: 1},
	} {
		t.Run(string(fault), func(t *testing.T) {
			p, c, reached := start(t)
			p.Set(rates)
			began := time.Now()
			status, n, err := get(c, p)
			took := time.Since(began)
			var ok bool
			switch fault {
			case Busy:
				ok = status == http.StatusServiceUnavailable && reached.Load() == 0
			case Slow:
				ok = err == nil && n == 1000 && took >= rates.Delay
			case Lost:
				ok = errors.Is(err, io.EOF) && reached.Load() >= 1 && took >= rates.Hold
			case Cut:
				ok = status == http.StatusOK && n == 500 && errors.Is(err, io.ErrUnexpectedEOF)
			case Reset:
				ok = errors.Is(err, syscall.ECONNRESET)
			}
			if counts, all := p.Counts(); !ok || counts[fault] < 1 || all < 1 {
				t.Errorf("status %d, %d bytes, %v after %v; store reached %d times; counts %v of %d", status, n, err, took, reached.Load(), counts, all)
			}
			p.Set(Rates{})
			if _, n, err := get(c, p); n != 1000 || err != nil {
				t.Errorf("healthy again: %d bytes, %v", n, err)
			}
		})
	}
}

func TestAway(t *testing.T) {
	p, c, reached := start(t)
	if err := p.Be(Refuses); err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(c, p); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refuses: %v", err)
	}
	if err := p.Be(Hangs); err != nil {
		t.Fatal(err)
	}
	hurried := &http.Client{Transport: c.Transport, Timeout: 200 * time.Millisecond}
	if _, _, err := get(hurried, p); err == nil || reached.Load() != 0 {
		t.Errorf("hangs: %v, the store was reached %d times", err, reached.Load())
	}
	if err := p.Be(Here); err != nil {
		t.Fatal(err)
	}
	if _, n, err := get(c, p); n != 1000 || err != nil {
		t.Errorf("back: %d bytes, %v", n, err)
	}
}
