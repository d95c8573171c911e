package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// healthTimeout is more than an agent takes for its checks.
const healthTimeout = 10 * time.Second

func (a *app) healthCmd() *cobra.Command {
	timeout := healthTimeout
	cmd := &cobra.Command{
		Use: "health", Short: "Ask an agent whether it is ready, for the health check of a container",
		Long: "Ask the agent at --admin whether it is ready (/readyz). The exit code is 0 if it is, and 1 if it is not or does not answer,\n" +
			"with the checks that fail. Where there is no shell and no curl, as in the image, this is the health check.",
		Args: args(cobra.NoArgs),
	}
	cmd.Flags().Var((*duration)(&timeout), "timeout", "how long to wait for the answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if timeout <= 0 {
			return fmt.Errorf("%w: --timeout %v: want more than 0", errUsage, timeout)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		text, err := a.askReady(ctx)
		if err != nil {
			return err
		}
		fmt.Fprint(cmd.OutOrStdout(), text)
		return nil
	}
	return cmd
}

// askReady returns what a ready agent says, or why it is not.
func (a *app) askReady(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.admin+"/readyz", nil)
	if err != nil {
		return "", fmt.Errorf("%w: --admin %q: %w", errUsage, a.admin, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return "", fmt.Errorf("ask the agent at %s (--admin): %w", a.admin, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", a.admin, err)
	}
	text := string(body)
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return "", fmt.Errorf("the agent at %s is not ready: %s", a.admin, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s answers %s to /readyz: is it the admin address of an agent?", a.admin, resp.Status)
	}
	return text, nil
}
