package httpgate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// apiError is an answer that is an error, the same for all dialects.
type apiError struct {
	Code    int    `json:"error_code"` // the status, or the status and two more digits
	Message string `json:"message"`
}

func (e *apiError) Error() string { return e.Message }

// status is the HTTP status of the code.
func (e *apiError) status() int {
	c := e.Code
	for c > 999 {
		c /= 10
	}
	return c
}

func fail(code int, format string, args ...any) *apiError {
	return &apiError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Codes of the dialects.
const (
	codeUnauthorized   = 40101
	codeForbidden      = 40301
	codeRefused        = 40002 // by the configs of the topic
	codeNoTopic        = 40401
	codeNoPartition    = 40402
	codeJSON           = 42203
	codePayload        = 42206
	codeKafka          = 50002
	codeKafkaRetriable = 50003
	codeNoBroker       = 50302
)

var errBusy = fail(429001, "Too many requests are at work; try again later.")

func statusError(status int) *apiError {
	return fail(status, "HTTP %d %s", status, http.StatusText(status))
}

// toAPI finds the answer to an error.
func toAPI(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok || errors.Is(err, errTooLarge) {
		return fail(413, "The body is larger than allowed.")
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fail(408, "The body took too long to arrive.")
	case errors.Is(err, errEncoding):
		return fail(400, "%v", err)
	}
	return kafkaError(err)
}

// kafkaError is toAPI for errors of the Kafka client.
func kafkaError(err error) *apiError {
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.UnknownTopicID):
		return fail(codeNoTopic, "Topic not found.")
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return fail(413, "The record is larger than the topic or the gateway allows.")
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fail(codeForbidden, "%v", err)
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fail(codeUnauthorized, "%v", err)
	case errors.Is(err, kerr.InvalidTimestamp), errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.PolicyViolation):
		return fail(codeRefused, "%v", err)
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fail(416, "The offset is not there any more.")
	case errors.Is(err, kgo.ErrMaxBuffered):
		return errBusy
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries), errors.Is(err, context.DeadlineExceeded):
		return fail(codeKafkaRetriable, "The brokers did not answer in time: %v", err)
	}
	if e, ok := errors.AsType[*kerr.Error](err); ok {
		if e.Retriable {
			return fail(codeKafkaRetriable, "%v", err)
		}
		return fail(codeKafka, "%v", err)
	}
	return fail(codeNoBroker, "No broker answers: %v", err)
}

// jsonError makes any error of decoding JSON one of the payload.
func jsonError(err error) error {
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	if tooLarge || errors.Is(err, errTooLarge) || errors.Is(err, errEncoding) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fail(codeJSON, "JSON can't be decoded: %v", err)
}

// WriteError answers an error of the caller's own in the envelope of all errors.
func WriteError(w http.ResponseWriter, status int, message string) {
	writeError(w, fail(status, "%s", message))
}

// writeError answers err. What was begun already stays as it is.
func writeError(w http.ResponseWriter, err error) {
	e := toAPI(err)
	h := w.Header()
	if !strings.HasPrefix(h.Get("Content-Type"), "application/vnd.kafka.") {
		h.Set("Content-Type", mediaJSON)
	}
	if st := e.status(); st == http.StatusTooManyRequests || st == http.StatusServiceUnavailable || st == http.StatusConflict {
		h.Set("Retry-After", "1")
	}
	if e.status() == http.StatusRequestTimeout {
		h.Set("Connection", "close") // the rest of the body may still come
	}
	w.WriteHeader(e.status())
	_ = json.NewEncoder(w).Encode(e)
}

// writeJSON answers v.
func writeJSON(w http.ResponseWriter, media string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", media)
	_, _ = w.Write(append(b, '\n')) // the client is gone: nobody to tell
	return nil
}
