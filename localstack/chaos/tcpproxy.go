package chaos

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// link is how a tcpProxy treats its connections.
type link int

const (
	linked  link = iota
	refused      // connections that are open are reset, new ones closed at once
	stalled      // connections stay open, and no byte passes until the link is back
)

// tcpProxy is the one way of an agent to something else. Its methods may be called concurrently.
type tcpProxy struct {
	addr, target string
	listener     net.Listener
	wg           sync.WaitGroup

	mu      sync.Mutex
	state   link
	changed chan struct{} // closed when state changes
	conns   map[net.Conn]bool
	closed  bool
}

// newTCPProxy listens on addr and passes all on to target, both HOST:PORT.
func newTCPProxy(addr, target string) (*tcpProxy, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &tcpProxy{addr: addr, target: target, listener: l, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	return p, nil
}

// be changes the link.
func (p *tcpProxy) be(s link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
	close(p.changed)
	p.changed = make(chan struct{})
	if s == refused {
		p.resetLocked()
	}
}

func (p *tcpProxy) resetLocked() {
	for c := range p.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
	}
}

// close ends the proxy and its connections.
func (p *tcpProxy) close() {
	p.mu.Lock()
	p.closed = true
	close(p.changed)
	p.changed = make(chan struct{})
	p.resetLocked()
	p.mu.Unlock()
	_ = p.listener.Close()
	p.wg.Wait()
}

func (p *tcpProxy) accept() {
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.wg.Go(func() { p.serve(c) })
		}
	}
}

// keep registers a connection; false when it is not wanted.
func (p *tcpProxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.state == refused {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *tcpProxy) drop(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pass waits until bytes may pass; false when the proxy ends.
func (p *tcpProxy) pass() bool {
	for {
		p.mu.Lock()
		s, closed, changed := p.state, p.closed, p.changed
		p.mu.Unlock()
		if closed || s == refused {
			return false
		}
		if s == linked {
			return true
		}
		<-changed
	}
}

func (p *tcpProxy) serve(in net.Conn) {
	if !p.keep(in) {
		return
	}
	defer p.drop(in)
	if !p.pass() {
		return
	}
	out, err := net.Dial("tcp", p.target)
	if err != nil || !p.keep(out) {
		return
	}
	defer p.drop(out)
	var both sync.WaitGroup
	both.Go(func() { p.pump(out, in) })
	both.Go(func() { p.pump(in, out) })
	both.Wait()
}

// pump copies until either side ends, then ends the other.
func (p *tcpProxy) pump(to, from net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if !p.pass() {
				break
			}
			if _, werr := to.Write(b[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// throttle stands before DynamoDB and refuses requests as a table does whose capacity is used up.
type throttle struct {
	server  *http.Server
	addr    string
	forward http.Handler

	mu    sync.Mutex
	share float64 // of the requests
	count int64   // of refused ones
}

// newThrottle listens on addr and passes on to target, http://HOST:PORT.
func newThrottle(addr, target string) (*throttle, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Host = r.In.Host // which the signature covers
	}, Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) }}
	t := &throttle{addr: addr, forward: forward}
	t.server = &http.Server{Handler: t}
	go func() { _ = t.server.Serve(l) }() // ends with ErrServerClosed
	return t, nil
}

// set makes it refuse a share of the requests, 0 to 1.
func (t *throttle) set(share float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.share = share
}

// ServeHTTP implements http.Handler.
func (t *throttle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	hit := rand.Float64() < t.share
	if hit {
		t.count++
	}
	t.mu.Unlock()
	if !hit {
		t.forward.ServeHTTP(w, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = fmt.Fprint(w, `{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"The level of configured provisioned throughput for the table was exceeded."}`)
}

func (t *throttle) close() { _ = t.server.Close() }
