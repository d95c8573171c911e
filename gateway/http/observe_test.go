package httpgate

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// TestObserved sees routes instead of paths, and the status of each answer.
func TestObserved(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /topics/{topic}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("topic") == "none" {
			w.WriteHeader(http.StatusNotFound)
		}
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		fmt.Fprintln(w, "x")
	})
	var seen []string
	s := httptest.NewServer(observed(fallback{mux}, func(route string, status int, took time.Duration) {
		seen = append(seen, fmt.Sprint(route, " ", status, " ", took > 0))
	}))
	for _, p := range []string{"/topics/a", "/topics/none", "/else"} {
		resp, err := http.Get(s.URL + p)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	resp, err := http.Post(s.URL+"/topics/a", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	s.Close()
	want := []string{"GET /topics/{topic} 200 true", "GET /topics/{topic} 404 true", "other 404 true", "other 405 true"}
	if !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
}
