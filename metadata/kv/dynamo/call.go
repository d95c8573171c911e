package dynamo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

const (
	firstPause = 10 * time.Millisecond
	longPause  = 300 * time.Millisecond
)

// tries bounds the repetitions of one call by time. Not safe for concurrent use.
type tries struct {
	until   time.Time
	n       int
	write   bool // an attempt without an answer may have been carried out
	unknown bool // there was one
}

func (s *Store) newTries() *tries { return &tries{until: time.Now().Add(s.opts.Budget)} }

func (s *Store) newWriteTries() *tries {
	return &tries{until: time.Now().Add(s.opts.Budget), write: true}
}

// answered forgets attempts without an answer: a later answer tells about them.
func (t *tries) answered() { t.unknown = false }

// pause waits before another try, longer each time, with jitter. Its error ends
// the call; because is what the last try said.
func (t *tries) pause(ctx context.Context, because error) error {
	d := min(firstPause<<min(t.n, 10), longPause)
	d = d/2 + rand.N(d)
	t.n++
	if time.Now().Add(d).After(t.until) {
		return t.failed(kv.ErrUnavailable, fmt.Errorf("given up after %d tries: %w", t.n, because))
	}
	select {
	case <-ctx.Done():
		return t.failed(ctx.Err(), because)
	case <-time.After(d):
		return nil
	}
}

// failed wraps what the last try said, and says ErrUnknown if it is.
func (t *tries) failed(err, because error) error {
	if t.unknown {
		return fmt.Errorf("%w: %w", kv.ErrUnknown, because)
	}
	return fmt.Errorf("%w: %w", err, because)
}

// do runs f, one request, until there is an answer that a repetition would not
// change: f must be fit to be repeated. A refusal comes back as it is.
func (s *Store) do(ctx context.Context, t *tries, f func(ctx context.Context) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return t.failed(err, errors.New("not sent"))
		}
		actx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		err := f(actx)
		cancel()
		switch classify(err) {
		case answerYes:
			t.answered()
			return nil
		case answerNo:
			return t.refused(err)
		case answerLost:
			t.unknown = t.unknown || t.write
		case answerBusy:
		}
		if cerr := ctx.Err(); cerr != nil {
			if t.unknown {
				return fmt.Errorf("%w: %w: %w", kv.ErrUnknown, cerr, err)
			}
			return fmt.Errorf("%w: %w", cerr, err)
		}
		if err := t.pause(ctx, err); err != nil {
			return err
		}
	}
}

// refused is the error of a refusal. Failed conditions are for the caller, and
// they decide earlier attempts too; anything else keeps the store from working.
func (t *tries) refused(err error) error {
	var cancelled *types.TransactionCanceledException
	var failed *types.ConditionalCheckFailedException
	if errors.As(err, &cancelled) || errors.As(err, &failed) {
		t.answered()
		return err
	}
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() == "ValidationException" {
		return err // damage, or our mistake: trying later does not help
	}
	return t.failed(kv.ErrUnavailable, err)
}

type answer int

const (
	answerYes  answer = iota
	answerNo          // a refusal that a repetition does not change
	answerBusy        // nothing was done; later perhaps
	answerLost        // none, or one that does not tell what was done
)

// errBusy is what a request says that ran into another transaction.
var errBusy = errors.New("another transaction is on the same items")

func classify(err error) answer {
	if err == nil {
		return answerYes
	}
	if errors.Is(err, errBusy) {
		return answerBusy
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "ProvisionedThroughputExceededException", "ThrottlingException", "Throttling", "RequestLimitExceeded",
			"RequestThrottledException", "TransactionConflictException", "LimitExceededException":
			return answerBusy
		case "TransactionInProgressException", "InternalServerError", "InternalFailure", "ServiceUnavailable":
			return answerLost
		}
	}
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) && resp.HTTPStatusCode() > 0 {
		switch status := resp.HTTPStatusCode(); {
		case status >= 500:
			return answerLost
		case status == http.StatusTooManyRequests:
			return answerBusy
		case status == http.StatusOK:
			return answerLost // cut off, or damaged on its way
		}
		return answerNo
	}
	if api != nil {
		return answerNo
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return answerBusy
	}
	var sent *smithyhttp.RequestSendError
	if errors.As(err, &sent) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return answerLost
	}
	var op2 *smithy.OperationError
	if errors.As(err, &op2) {
		return answerLost // credentials that can't be had, an answer that can't be read
	}
	return answerNo // of our own decoding
}
