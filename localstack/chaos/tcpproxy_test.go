package chaos

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// freeAddr is a loopback address that nobody else is given.
func freeAddr(t testing.TB) string {
	t.Helper()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", itoa(port))
}

// A link passes, stalls without losing a byte, refuses, and passes again.
func TestTCPProxy(t *testing.T) {
	echo, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	p, err := newTCPProxy(freeAddr(t), echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		return c, bufio.NewReader(c)
	}
	says := func(c net.Conn, r *bufio.Reader, wait time.Duration) error {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		_, err := r.ReadString('\n')
		return err
	}
	c, r := dial()
	defer c.Close()
	if err := says(c, r, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	p.be(stalled)
	if err := says(c, r, 100*time.Millisecond); err == nil {
		t.Error("a stalled link passes")
	}
	p.be(linked)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.ReadString('\n'); err != nil {
		t.Errorf("what waited is lost: %v", err)
	}
	p.be(refused)
	if err := says(c, r, 10*time.Second); err == nil {
		t.Error("a connection outlives the link")
	}
	c2, r2 := dial()
	defer c2.Close()
	if err := says(c2, r2, 10*time.Second); err == nil {
		t.Error("a refused link passes")
	}
	p.be(linked)
	c3, r3 := dial()
	defer c3.Close()
	if err := says(c3, r3, 10*time.Second); err != nil {
		t.Error(err)
	}
}

func TestThrottle(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") }))
	defer s.Close()
	th, err := newThrottle(freeAddr(t), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer th.close()
	post := func() string {
		resp, err := http.Post("http://"+th.addr, "", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := post(); got != "done" {
		t.Errorf("%q", got)
	}
	th.set(1)
	if got := post(); !strings.Contains(got, "ProvisionedThroughputExceeded") || th.count != 1 {
		t.Errorf("%q, %d", got, th.count)
	}
}
