// Package faultproxy is an HTTP proxy that stands between the program and a
// real object store and does what object stores do on bad days: bursts of 503
// SlowDown, slow answers, requests that succeed but whose answers never come,
// bodies that end in the middle, connections that are reset, and being away
// altogether: refusing connections, or accepting them and saying nothing.
//
// It listens on a plain loopback port and passes the Host header on as it came,
// because request signatures cover it. Faults are drawn for each request
// independently, except for the bursts, which follow the clock. How often each
// has happened can be asked, so that a test can tell that it met them all.
package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Fault is something that goes wrong with one request.
type Fault string

// The faults.
const (
	Busy  Fault = "busy"  // 503 SlowDown; the store never sees the request
	Slow  Fault = "slow"  // the answer comes late
	Lost  Fault = "lost"  // done by the store, but the answer never comes
	Cut   Fault = "cut"   // the body of the answer ends in the middle
	Reset Fault = "reset" // the connection is reset, before or after the store acted
	Away  Fault = "away"  // refused with the connection, or never answered
)

// Rates say how often what goes wrong. The probabilities are of each request,
// from 0 to 1, and tried in this order; the zero value is a store in good health.
type Rates struct {
	// Every BusyEvery all requests of BusyFor are answered 503.
	BusyEvery, BusyFor time.Duration

	Slow, Lost, Reset float64
	Cut               float64 // of GETs that have an answer with a body

	Delay time.Duration // of a slow answer
	Hold  time.Duration // until the connection of a lost answer is closed
}

// Presence says whether the store can be reached at all.
type Presence int

// The presences.
const (
	Here    Presence = iota
	Refuses          // nothing listens; connections that were open are closed
	Hangs            // connections are accepted, requests never answered
)

// Proxy is a running proxy. Its methods may be called concurrently.
type Proxy struct {
	addr    string
	forward *httputil.ReverseProxy
	quit    chan struct{} // closed by Close
	wg      sync.WaitGroup

	mu       sync.Mutex
	server   *http.Server // nil while it refuses
	listener net.Listener // of server
	presence Presence
	rates    Rates
	since    time.Time // of rates
	counts   map[Fault]int64
	requests int64
	closed   bool
}

// New returns a proxy that listens on addr, HOST:PORT, and passes what comes on
// to the store at target, http://HOST:PORT. Close ends it.
func New(addr, target string) (*Proxy, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("parse target: %w", err)
	}
	p := &Proxy{addr: addr, quit: make(chan struct{}), counts: map[Fault]int64{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host
		},
		Transport:      &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		FlushInterval:  -1, // what comes before a cut arrives
		ModifyResponse: p.answer,
		ErrorHandler:   fail,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	return p, p.listen()
}

// URL is where clients find the proxy.
func (p *Proxy) URL() string { return "http://" + p.addr }

// Set makes things go wrong at these rates from now on.
func (p *Proxy) Set(r Rates) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rates, p.since = r, time.Now()
}

// Be makes the store reachable or not. Requests that hang go on hanging when it
// is back, until their clients give up, as after a lost packet nobody resends.
func (p *Proxy) Be(here Presence) error {
	p.mu.Lock()
	s, l := p.server, p.listener
	p.presence = here
	if here == Refuses {
		p.server = nil
	}
	p.mu.Unlock()
	switch {
	case here == Refuses && s != nil:
		p.count(Away)
		return shut(s, l)
	case here != Refuses && s == nil:
		return p.listen()
	}
	return nil
}

// Counts returns how often each fault has happened, and the number of requests.
func (p *Proxy) Counts() (faults map[Fault]int64, requests int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	faults = map[Fault]int64{}
	for f, n := range p.counts {
		faults[f] = n
	}
	return faults, p.requests
}

// Close ends the proxy and everything that hangs in it.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	s, l := p.server, p.listener
	p.mu.Unlock()
	close(p.quit)
	var err error
	if s != nil {
		err = shut(s, l)
	}
	p.wg.Wait()
	p.forward.Transport.(*http.Transport).CloseIdleConnections()
	return err
}

func (p *Proxy) listen() error {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.Join(net.ErrClosed, l.Close())
	}
	p.server, p.listener = s, l
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		_ = s.Serve(l) // ends with ErrServerClosed
	}()
	return nil
}

// shut closes listener and connections of a server. The server closes its
// listener only if it has begun to serve.
func shut(s *http.Server, l net.Listener) error {
	err := l.Close()
	if cerr := s.Close(); !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

func (p *Proxy) count(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[f]++
}

// draw decides what happens to a request.
func (p *Proxy) draw(method string) (Fault, Rates) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	r, f := p.rates, Fault("")
	x := rand.Float64()
	hit := func(rate float64) bool {
		x -= rate
		return x < 0
	}
	switch {
	case p.presence != Here:
		f = Away
	case r.BusyEvery > 0 && time.Since(p.since)%r.BusyEvery < r.BusyFor:
		f = Busy
	case hit(r.Slow):
		f = Slow
	case hit(r.Lost):
		f = Lost
	case hit(r.Reset):
		f = Reset
	case method == http.MethodGet && hit(r.Cut):
		f = Cut
	}
	if f != "" && f != Cut { // a cut is counted when there is a body
		p.counts[f]++
	}
	return f, r
}

// fate is what was drawn for a request; it travels in its context.
type fate struct {
	fault Fault
	rates Rates
}

type fateKey struct{}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	p.wg.Add(1)
	p.mu.Unlock()
	defer p.wg.Done()
	fault, rates := p.draw(r.Method)
	switch fault {
	case Away:
		// Only with the body read does the server notice that the client has gone.
		_, _ = io.Copy(io.Discard, r.Body)
		p.wait(r.Context(), 0)
		panic(http.ErrAbortHandler)
	case Busy:
		_, _ = io.Copy(io.Discard, r.Body) // or the answer is lost in a reset
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
		return
	case Slow:
		if !p.wait(r.Context(), rates.Delay) {
			panic(http.ErrAbortHandler)
		}
	case Reset:
		if rand.IntN(2) == 0 {
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			reset(w)
		}
	}
	p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), fateKey{}, fate{fault, rates})))
}

// wait waits for d, or with 0 for ever; it reports false when the client or the
// proxy ended first.
func (p *Proxy) wait(ctx context.Context, d time.Duration) bool {
	var over <-chan time.Time
	if d > 0 {
		over = time.After(d)
	}
	select {
	case <-over:
		return true
	case <-ctx.Done():
	case <-p.quit:
	}
	return false
}

var (
	errLost  = errors.New("the answer is lost")
	errReset = errors.New("the connection is reset")
)

// answer does to the store's answer what was drawn.
func (p *Proxy) answer(resp *http.Response) error {
	f, _ := resp.Request.Context().Value(fateKey{}).(fate)
	switch f.fault {
	case Lost, Reset:
		if _, err := io.Copy(io.Discard, resp.Body); err != nil { // the store is done
			return err
		}
		if f.fault == Reset {
			return errReset
		}
		p.wait(resp.Request.Context(), f.rates.Hold)
		return errLost
	case Cut:
		if resp.ContentLength > 1 && resp.StatusCode/100 == 2 {
			p.count(Cut)
			resp.Body = &cutBody{ReadCloser: resp.Body, left: resp.ContentLength / 2}
		}
	}
	return nil
}

// cutBody fails after left bytes.
type cutBody struct {
	io.ReadCloser
	left int64
}

func (c *cutBody) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// fail ends a request without an answer.
func fail(w http.ResponseWriter, _ *http.Request, err error) {
	if errors.Is(err, errReset) {
		reset(w)
	}
	panic(http.ErrAbortHandler)
}

// reset closes the client's connection with a RST and ends the handler.
func reset(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
	}
	panic(http.ErrAbortHandler)
}
