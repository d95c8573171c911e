package httpevent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

func refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	fmt.Fprint(w, message)
}

type reply struct {
	StatusCode        int                 `json:"statusCode"`
	Headers           map[string]string   `json:"headers"`
	MultiValueHeaders map[string][]string `json:"multiValueHeaders"`
	Cookies           []string            `json:"cookies"`
	Body              string              `json:"body"`
	IsBase64Encoded   bool                `json:"isBase64Encoded"`
}

func invoke(t *testing.T, h http.HandlerFunc, payload string) reply {
	t.Helper()
	out, err := (&Handler{HTTP: h, Refuse: refuse, Logger: slog.New(slog.DiscardHandler)}).Invoke(t.Context(), []byte(payload))
	var r reply
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func v2(method, path, query, stage string) string {
	return fmt.Sprintf(`{"version":"2.0","rawPath":%q,"rawQueryString":%q,"cookies":["a=1","b=2"],"requestContext":{"stage":%q,"domainName":"d.example","http":{"method":%q,"sourceIp":"192.0.2.1"}}}`, path, query, stage, method)
}

const (
	rest = `{"httpMethod":"GET","path":"/p","multiValueHeaders":null,"headers":{"Host":"h"},"queryStringParameters":{"q":"a b"},"requestContext":{"identity":{"sourceIp":"192.0.2.1"}}}`
	alb  = `{"requestContext":{"elb":{"targetGroupArn":"arn"}},"httpMethod":"GET","path":"/p","headers":{"x-forwarded-for":"192.0.2.1, 10.0.0.1","host":"h"},"queryStringParameters":{"q":"a%20b"}}`
)

// Requests are what the client has sent, whoever was between.
func TestRequests(t *testing.T) {
	for _, one := range []struct{ payload, want string }{
		{v2("GET", "/a/b", "x=1&x=2", "$default"), "GET /a/b?x=1&x=2 host d.example from 192.0.2.1 cookie a=1; b=2"},
		{v2("GET", "/prod/a", "", "prod"), "GET /a host d.example from 192.0.2.1 cookie a=1; b=2"},
		{v2("GET", "/prod", "", "prod"), "GET / host d.example from 192.0.2.1 cookie a=1; b=2"},
		{v2("GET", "/production/a", "", "prod"), "GET /production/a host d.example from 192.0.2.1 cookie a=1; b=2"}, // of a domain of the user's
		{v2("GET", "/a%2Fb", "", ""), "GET /a%2Fb host d.example from 192.0.2.1 cookie a=1; b=2"},
		{v2("GET", "/100%", "", ""), "GET /100%25 host d.example from 192.0.2.1 cookie a=1; b=2"}, // decoded on its way
		{rest, "GET /p?q=a+b host h from 192.0.2.1 cookie "},
		{alb, "GET /p?q=a%20b host h from 192.0.2.1 cookie "},
	} {
		got := invoke(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s host %s from %s cookie %s", r.Method, r.URL, r.Host, r.RemoteAddr, r.Header.Get("Cookie"))
		}, one.payload)
		if got.StatusCode != 200 || got.Body != one.want {
			t.Errorf("%s: %d %s, want %s", one.payload, got.StatusCode, got.Body, one.want)
		}
	}
}

// Answers are in the format of who asked, and of a size that arrives.
func TestAnswers(t *testing.T) {
	binary := invoke(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header()["X-Two"] = []string{"1", "2"}
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte{0xff})
		_ = http.NewResponseController(w).Flush()
	}, v2("GET", "/", "", ""))
	if binary.StatusCode != 418 || !binary.IsBase64Encoded || binary.Body != base64.StdEncoding.EncodeToString([]byte{0xff}) || len(binary.Cookies) != 2 || binary.Headers["X-Two"] != "1,2" || binary.Headers["Set-Cookie"] != "" {
		t.Errorf("%+v", binary)
	}
	if r := invoke(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "body") }, v2("HEAD", "/", "", "")); r.Body != "" || r.StatusCode != 200 {
		t.Errorf("HEAD: %+v", r)
	}
	for payload, limit := range map[string]int{v2("GET", "/", "", ""): maxAnswer, rest: maxAnswer, alb: maxBalancerAnswer} {
		for _, size := range []int{limit - 1000, limit} {
			r := invoke(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), size)) }, payload)
			if fits := size < limit; fits != (r.StatusCode == 200) || !fits && (r.StatusCode != 500 || !strings.Contains(r.Body, "ask for less")) {
				t.Errorf("%d bytes of %d: status %d, %.100s", size, limit, r.StatusCode, r.Body)
			}
		}
	}
	half := invoke(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "stored")
		panic(http.ErrAbortHandler)
	}, alb)
	if half.StatusCode != 500 || strings.HasPrefix(half.Body, "stored") {
		t.Errorf("after a panic: %+v", half)
	}
}

// The handler has less time than the function, so that its answer arrives.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	h := &Handler{Refuse: refuse, HTTP: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if end, ok := r.Context().Deadline(); !ok || time.Until(end) > 9*time.Second {
			t.Errorf("deadline %v, %v", end, ok)
		}
	})}
	if _, err := h.Invoke(ctx, []byte(alb)); err != nil {
		t.Fatal(err)
	}
}

// FuzzInvoke gives the handler anything: it fails with ErrNoEvent or answers.
func FuzzInvoke(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(testenv.Root(), "localstack", "lambda", "testdata", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatal(err, len(files))
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{rest, alb, v2("GET", "//", "%", "x"), `{"version":"2.0"}`, `{"httpMethod":"\n"}`} {
		f.Add([]byte(s))
	}
	h := &Handler{Refuse: refuse, Logger: slog.New(slog.DiscardHandler), HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "" || r.URL.Path == "" {
			f.Errorf("request %q %q", r.Method, r.URL)
		}
		fmt.Fprintf(w, "%s %s %q", r.Method, r.URL, r.Header)
	})}
	f.Fuzz(func(t *testing.T, payload []byte) {
		out, err := h.Invoke(t.Context(), payload)
		if errors.Is(err, ErrNoEvent) {
			return
		}
		var r reply
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		if err != nil || r.StatusCode != 200 && r.StatusCode != 400 {
			t.Errorf("%v: %s", err, out)
		}
	})
}
