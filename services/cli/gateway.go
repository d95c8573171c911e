package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	httpgate "github.com/cirrolog/cirrolog/gateway/http"
)

// gatewayStop bounds a graceful stop of the gateway.
const gatewayStop = 10 * time.Second

func (a *app) gatewayCmd() *cobra.Command {
	var addr, logLevel, logFormat string
	cmd := &cobra.Command{
		Use:     "gateway",
		Short:   "Run the HTTP gateway alone, beside a cluster",
		Long:    "Run the HTTP gateway as a Kafka client of the cluster at --brokers. `serve` has one of its own.",
		Example: "cirrolog gateway --brokers 10.0.0.1:9092 --http-addr 127.0.0.1:8082",
		Args:    args(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&addr, "http-addr", "127.0.0.1:8082", "HOST:PORT to listen on")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := newLogger(cmd, logLevel, logFormat)
		if err != nil {
			return err
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%w: --http-addr %q: want HOST:PORT", errUsage, addr)
		}
		gate, err := httpgate.New(httpgate.Options{Brokers: a.brokers, Logger: log})
		if err != nil {
			return fmt.Errorf("%w: --brokers: %w", errUsage, err)
		}
		var lc net.ListenConfig
		ln, err := lc.Listen(cmd.Context(), "tcp", addr)
		if err != nil {
			return errors.Join(fmt.Errorf("listen on %s: %w: stop what uses it or choose another --http-addr", addr, err), gate.Shutdown(cmd.Context()))
		}
		serving := make(chan error, 1)
		go func() { serving <- gate.Serve(ln) }()
		log.Info("serving", "http", ln.Addr().String(), "brokers", a.brokers)
		select {
		case err = <-serving:
			serving <- nil
		case <-cmd.Context().Done():
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), gatewayStop)
		defer cancel()
		return errors.Join(err, gate.Shutdown(ctx), <-serving)
	}
	return cmd
}
