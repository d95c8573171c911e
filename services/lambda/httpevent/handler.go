package httpevent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// What Lambda (6 MB) and the balancer (1 MB) carry of an answer, in JSON.
const (
	maxAnswer         = 6_000_000
	maxBalancerAnswer = 1_000_000
)

// answerTime is what is left of an invocation's time for the answer, at most; of short ones a fifth.
const answerTime = time.Second

// Handler answers events with an http.Handler. It is safe for concurrent use and implements lambda.Handler.
type Handler struct {
	HTTP http.Handler
	// Refuse answers what is wrong with an event, as HTTP answers errors.
	Refuse func(w http.ResponseWriter, status int, message string)
	Logger *slog.Logger
}

// Invoke answers one event. It fails with ErrNoEvent only: all else is an answer.
func (h *Handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	from, err := sourceOf(payload)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(answerTime, time.Until(end)/5)))
		defer cancel()
	}
	a := &answer{header: http.Header{}}
	if r, err := request(ctx, from, payload); err != nil {
		h.Refuse(a, http.StatusBadRequest, err.Error())
	} else {
		a = h.serve(ctx, r)
	}
	out, err := a.encode(from)
	if err != nil {
		return nil, err
	}
	limit := maxAnswer
	if from == balancer || from == balancerMulti {
		limit = maxBalancerAnswer
	}
	if len(out) <= limit {
		return out, nil
	}
	status := a.status
	a = &answer{header: http.Header{}}
	h.Refuse(a, http.StatusInternalServerError, fmt.Sprintf("The answer, with status %d, has %d bytes, Lambda carries %d here: ask for less, or send less at a time.", status, len(out), limit))
	return a.encode(from)
}

// serve calls the HTTP handler. One that panics may have answered half.
func (h *Handler) serve(ctx context.Context, r *http.Request) (a *answer) {
	a = &answer{header: http.Header{}}
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { // that one was logged
				h.Logger.ErrorContext(ctx, "a request failed: this is a bug", "panic", p, "stack", string(debug.Stack()))
			}
			a = &answer{header: http.Header{}}
			h.Refuse(a, http.StatusInternalServerError, "The request failed; what it was to store is stored or not.")
		}
	}()
	h.HTTP.ServeHTTP(a, r)
	if r.Method == http.MethodHead {
		a.body.Reset()
	}
	return a
}

// answer is an http.ResponseWriter that keeps all. It is for one goroutine at a time.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

// Flush does nothing: an answer is sent as a whole.
func (a *answer) Flush() {}

// encode renders the answer in the format of who asked.
func (a *answer) encode(from source) ([]byte, error) {
	a.WriteHeader(http.StatusOK)
	a.header.Del("Content-Length")
	a.header.Del("Connection") // there is none
	body, binary := a.body.String(), false
	if !utf8.ValidString(body) {
		body, binary = base64.StdEncoding.EncodeToString(a.body.Bytes()), true
	}
	one := map[string]string{}
	for k, vs := range a.header {
		one[k] = strings.Join(vs, ",")
	}
	switch from {
	case format2:
		cookies := a.header["Set-Cookie"]
		delete(one, "Set-Cookie")
		return json.Marshal(events.LambdaFunctionURLResponse{StatusCode: a.status, Headers: one, Body: body, IsBase64Encoded: binary, Cookies: cookies})
	case format1:
		return json.Marshal(events.APIGatewayProxyResponse{StatusCode: a.status, MultiValueHeaders: a.header, Body: body, IsBase64Encoded: binary})
	}
	r := events.ALBTargetGroupResponse{StatusCode: a.status, StatusDescription: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), Body: body, IsBase64Encoded: binary}
	if from == balancerMulti {
		r.MultiValueHeaders = a.header
	} else {
		r.Headers = one
	}
	return json.Marshal(r)
}
