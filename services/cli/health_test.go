package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHealth: the exit code is 0 for an agent that is ready and only then, and what is wrong is one line.
func TestHealth(t *testing.T) {
	answers := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	hung := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(hung) })
	for _, c := range []struct {
		name, args string
		code       int
		want       string // on stdout, or on stderr with another code than 0
	}{
		{"ready", "--admin " + answers(200, "ready\n"), exitOK, "ready\n"},
		{"not ready", "--admin " + answers(503, "[-] bucket: gone\n[-] disk: full\n"), exitError, "is not ready: [-] bucket: gone; [-] disk: full\n"},
		{"another server", "--admin " + answers(404, "no\n"), exitError, "404 Not Found to /readyz: is it the admin address"},
		{"nobody", "--admin 127.0.0.1:1", exitError, "--admin"},
		{"silent", "--timeout 50ms --admin " + silent.Listener.Addr().String(), exitError, "deadline"},
		{"no address", "--admin a%b", exitUsage, "--admin"},
		{"no time", "--timeout 0s", exitUsage, "--timeout 0s: want more than 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := Main(t.Context(), append([]string{"health"}, strings.Fields(c.args)...), options(strings.NewReader(""), &out, &errs))
			said := errs.String()
			if c.code == exitOK {
				said = out.String()
			}
			if code != c.code || !strings.Contains(said, c.want) || strings.Count(said, "\n") != 1 {
				t.Errorf("exit code %d, want %d, and %q in %q", code, c.code, c.want, said)
			}
		})
	}
	n := startNode(t)
	if out, errs, code := n.run("", "health"); code != exitOK || out != "ready\n" {
		t.Errorf("a node that serves: exit code %d, %q, %q", code, out, errs)
	}
}
