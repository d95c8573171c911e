package s3core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Failure is an answer of the store that is not a success.
type Failure struct {
	Status int    // HTTP status; 0 when no answer came
	Code   string // S3's error code, may be empty
	Err    error
}

// Classify turns the failure of a request into an error that wraps the
// sentinel of objstore it means, and f.Err. write says that the request
// changes the bucket, so that a lost answer leaves the outcome unknown. ctx is
// the caller's: when it has ended, its error is wrapped too.
func Classify(ctx context.Context, f Failure, write bool) error {
	if f.Status == 0 {
		return noAnswer(ctx, f.Err, write)
	}
	if s := sentinel(f, write); s != nil {
		return fmt.Errorf("%w: %w", s, f.Err)
	}
	return f.Err
}

func sentinel(f Failure, write bool) error {
	switch f.Code {
	case "NoSuchBucket":
		return objstore.ErrNoBucket
	case "BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest", "XAmzContentSHA256Mismatch":
		return objstore.ErrChecksum
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return objstore.ErrDenied
	case "RequestTimeTooSkewed":
		return objstore.ErrClock
	case "SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted":
		return objstore.ErrThrottled
	}
	switch f.Status {
	case http.StatusNotFound:
		return objstore.ErrNotFound
	case http.StatusPreconditionFailed:
		return objstore.ErrPrecondition
	case http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		return objstore.ErrThrottled
	case http.StatusRequestedRangeNotSatisfiable:
		return objstore.ErrRange
	case http.StatusUnauthorized, http.StatusForbidden:
		return objstore.ErrDenied
	}
	switch {
	case f.Status < 500:
		return nil
	case write: // 500, 502 and 504 do not say whether it was done
		return objstore.ErrUnknown
	}
	return objstore.ErrThrottled
}

// noAnswer classifies errors of the connection. A refused connection left
// nothing done.
func noAnswer(ctx context.Context, err error, write bool) error {
	if cerr := ctx.Err(); cerr != nil {
		if !write {
			return fmt.Errorf("%w: %w", cerr, err)
		}
		return fmt.Errorf("%w: %w: %w", objstore.ErrUnknown, cerr, err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w: %w", objstore.ErrThrottled, err)
	}
	return fmt.Errorf("%w: %w", objstore.ErrUnknown, err)
}

// StatusOf returns the HTTP status that goes with the error code of one key in
// the answer to a delete of many.
func StatusOf(code string) int {
	switch code {
	case "NoSuchKey", "NoSuchVersion":
		return http.StatusNotFound
	case "AccessDenied":
		return http.StatusForbidden
	case "SlowDown", "ServiceUnavailable":
		return http.StatusServiceUnavailable
	case "InternalError":
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}
