package e2e

import (
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
)

// TestCutOff cuts one agent off from the bucket, which still reaches everything else: the others take its partitions
// over, and it leads again when it is back. With all of them cut off nobody gives anything up.
func TestCutOff(t *testing.T) {
	t.Parallel()
	e, r := minio.Start(t), redis.Start(t, "--appendonly", "yes")
	var proxies []*faultproxy.Proxy
	c := newClusterVia(t, e, func() minio.Endpoint {
		p, err := faultproxy.New(freeAddr(t), e.URL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		proxies = append(proxies, p)
		through := e
		through.URL = p.URL()
		return through
	}, r.URL("e2e"), 1, "--lease", "1s")
	be := func(how faultproxy.Presence, ps ...*faultproxy.Proxy) {
		t.Helper()
		for _, p := range ps {
			if err := p.Be(how); err != nil {
				t.Fatal(err)
			}
		}
	}
	anew := func() (n int) {
		for _, node := range c.nodes {
			n += strings.Count(node.Log(), "starting anew")
		}
		return n
	}
	c.load(50)
	n, led := c.victim()
	mine := proxies[slices.Index(c.nodes, n)]
	began := time.Now()
	be(faultproxy.Hangs, mine)
	c.load(5)
	t.Logf("an agent that led %v was cut off: next acknowledgements of all partitions after %v", led, time.Since(began).Round(time.Millisecond))
	eventually(t, 20*time.Second, "it gives up", func() bool { return anew() == 1 })
	for range 10 { // who asked it would wait for an answer
		if conn, err := net.Dial("tcp", n.Kafka); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("it can't serve anybody, and a client gets %v, %v", conn, err)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	be(faultproxy.Here, mine)
	if err := n.ready(); err != nil {
		t.Fatal(err)
	}
	c.load(50)
	be(faultproxy.Refuses, proxies...)
	time.Sleep(15 * time.Second) // longer than one agent waits
	be(faultproxy.Here, proxies...)
	c.load(50)
	if n := anew(); n != 1 {
		t.Errorf("nobody reached the bucket, and %d agents began anew", n-1)
	}
	c.finish()
}
