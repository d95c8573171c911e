// Package function is what the Lambda functions share: their settings, how they start, and how they fail.
package function

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// prefix of the variables that are settings.
const prefix = "CIRROLOG_"

// ErrSettings: a variable is missing, unknown or can't be understood.
var ErrSettings = errors.New("settings")

// Settings reads the variables of the environment: those that must be set, and those that may be. A variable of the
// prefix that is neither is refused, for it is a typing mistake.
func Settings(required, optional []string) (map[string]string, error) {
	all := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(k, prefix) || v == "" {
			continue
		}
		if !slices.Contains(required, k) && !slices.Contains(optional, k) {
			return nil, fmt.Errorf("%w: %s is not known: want %s", ErrSettings, k, strings.Join(slices.Concat(required, optional), ", "))
		}
		all[k] = v
	}
	for _, k := range required {
		if all[k] == "" {
			return nil, fmt.Errorf("%w: %s is not set", ErrSettings, k)
		}
	}
	return all, nil
}

// Start makes the handler and answers invocations with it until Lambda ends the process. If it can't be made Lambda is
// told why, in words that `aws lambda invoke` shows.
func Start(newHandler func(log *slog.Logger) (lambda.Handler, error)) {
	log := lambdacontext.NewLogger()
	h, err := newHandler(log)
	if err != nil {
		log.Error("the function can't start", "err", err)
		if err := tellInit(err); err != nil {
			log.Error("Lambda was not told", "err", err)
		}
		os.Exit(1)
	}
	lambda.Start(h)
}

// tellTime bounds the call that tells why the function can't start.
const tellTime = 5 * time.Second

// tellInit reports an error of the start
// (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html#runtimes-api-initerror).
func tellInit(why error) error {
	api := os.Getenv("AWS_LAMBDA_RUNTIME_API")
	if api == "" {
		return errors.New("AWS_LAMBDA_RUNTIME_API is not set: this program runs in AWS Lambda")
	}
	e := Failure(why).(messages.InvokeResponse_Error)
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+api+"/2018-06-01/runtime/init/error", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Lambda-Runtime-Function-Error-Type", e.Type)
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req) // never through a proxy
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ErrNoEvent: the payload is not what the function is made for.
var ErrNoEvent = errors.New("not an event of this function")

// ErrDamaged: something in the bucket is not what was written.
var ErrDamaged = errors.New("damaged")

// Failure is err as the error of an invocation: its errorType is a word that alarms and retries can tell apart.
func Failure(err error) error {
	if _, ok := errors.AsType[messages.InvokeResponse_Error](err); ok {
		return err
	}
	kind := "Failed"
	for _, k := range []struct {
		err  error
		kind string
	}{
		{ErrSettings, "Settings"}, {ErrNoEvent, "NotAnEvent"}, {ErrDamaged, "Damaged"}, {metadata.ErrDamaged, "Damaged"}, {objstore.ErrNoBucket, "NoBucket"}, {objstore.ErrDenied, "Denied"},
		{metadata.ErrForeignBucket, "ForeignBucket"}, {context.DeadlineExceeded, "Timeout"}, {metadata.ErrUnavailable, "Unavailable"}, {kv.ErrUnavailable, "Unavailable"},
		{objstore.ErrThrottled, "Unavailable"}, {objstore.ErrUnknown, "Unavailable"},
	} {
		if errors.Is(err, k.err) {
			kind = k.kind
			break
		}
	}
	return messages.InvokeResponse_Error{Type: "Cirrolog." + kind, Message: err.Error()}
}
