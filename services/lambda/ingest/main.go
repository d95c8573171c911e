// Command ingest is the HTTP gateway as a Lambda function, behind a Function URL, an API of API Gateway or an Application
// Load Balancer: a Kafka client of the cluster that answers when records are stored.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
	"github.com/cirrolog/cirrolog/services/lambda/function"
	"github.com/cirrolog/cirrolog/services/lambda/httpevent"
)

func main() { function.Start(newHandler) }

const brokersVariable = "CIRROLOG_BROKERS"

func newHandler(log *slog.Logger) (lambda.Handler, error) {
	set, err := function.Settings([]string{brokersVariable}, nil)
	if err != nil {
		return nil, err
	}
	brokers := strings.Split(set[brokersVariable], ",")
	for _, b := range brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return nil, fmt.Errorf("%w: %s %q: want HOST:PORT,…", function.ErrSettings, brokersVariable, b)
		}
	}
	gate, err := httpgate.New(httpgate.Options{Brokers: brokers, Logger: log, Whole: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", function.ErrSettings, brokersVariable, err)
	}
	return &handler{httpevent.Handler{HTTP: gate.Handler(), Refuse: httpgate.WriteError, Logger: log}}, nil
}

type handler struct{ http httpevent.Handler }

// Invoke implements lambda.Handler.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	out, err := h.http.Invoke(ctx, payload)
	if errors.Is(err, httpevent.ErrNoEvent) {
		err = fmt.Errorf("%w: %w", function.ErrNoEvent, err)
	}
	if err != nil {
		return nil, function.Failure(err)
	}
	return out, nil
}
