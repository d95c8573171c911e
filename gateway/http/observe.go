package httpgate

import (
	"cmp"
	"net/http"
	"time"
)

// observed tells of every request when it was answered.
func observed(h http.Handler, tell func(route string, status int, took time.Duration)) http.Handler {
	if tell == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, sw := time.Now(), &statusWriter{ResponseWriter: w}
		defer func() { tell(cmp.Or(r.Pattern, "other"), cmp.Or(sw.status, http.StatusOK), time.Since(began)) }()
		h.ServeHTTP(sw, r)
	})
}

// statusWriter remembers the status. http.ResponseController reaches the writer
// below it.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
