package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	connectTimeout = 10 * time.Second
	adminTimeout   = 60 * time.Second
	maxAdminAnswer = 256 << 20 // bytes
)

// client connects to the cluster of --brokers.
func (a *app) client(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(a.brokers...), kgo.ClientID("cirrolog-cli")}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	pctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := cl.Ping(pctx); err != nil {
		cl.Close()
		return nil, fmt.Errorf("connect to %s (--brokers): %w: is a node running there? `cirrolog serve` starts one", strings.Join(a.brokers, ","), err)
	}
	return cl, nil
}

// withAdmin runs f with a connected Kafka admin client.
func (a *app) withAdmin(ctx context.Context, f func(context.Context, *kadm.Client) error) error {
	cl, err := a.client(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	return f(ctx, kadm.NewClient(cl))
}

// getJSON asks the admin API of the agent at --admin and decodes the answer.
func (a *app) getJSON(ctx context.Context, path string, query url.Values, into any) error {
	return a.adminJSON(ctx, http.MethodGet, path, query, into)
}

func (a *app) adminJSON(ctx context.Context, method, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	u := "http://" + a.admin + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return fmt.Errorf("%w: --admin %q: %w", errUsage, a.admin, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return fmt.Errorf("ask the agent at %s (--admin): %w: is it the admin address of a running node?", a.admin, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of %s: %w", a.admin, err)
	case len(body) > maxAdminAnswer:
		return fmt.Errorf("the answer of %s has more than %d bytes", a.admin, maxAdminAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(body, &e) == nil && e.Error != "" {
			return errors.New(e.Error)
		}
		return fmt.Errorf("%s answers %s to %s: is it the admin address of an agent?", a.admin, resp.Status, path)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode the answer of %s: %w", a.admin, err)
	}
	return nil
}

// errNotConfirmed: the answer to a question was not yes.
var errNotConfirmed = errors.New("not confirmed; nothing was changed (--yes skips the question)")

// confirm asks on stderr unless --yes is given.
func (a *app) confirm(question string) error {
	if a.yes {
		return nil
	}
	fmt.Fprintf(a.o.Stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(io.LimitReader(a.o.Stdin, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errNotConfirmed
}

// args wraps a check of arguments so that its failure is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return fmt.Errorf("%w: %w (%s)", errUsage, err, cmd.UseLine())
		}
		return nil
	}
}

const completionTimeout = 2 * time.Second

// completeTopics offers topic names; limit is how many arguments are topics, 0
// for all.
func (a *app) completeTopics(limit int) cobra.CompletionFunc {
	return a.completeNames(limit, func(ctx context.Context, adm *kadm.Client) ([]string, error) {
		topics, err := adm.ListTopics(ctx)
		return topics.Names(), err
	})
}

// completeNames offers names, asked of the cluster, for the first limit arguments
// or, with 0, for all.
func (a *app) completeNames(limit int, list func(context.Context, *kadm.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit > 0 && len(given) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		var names []string
		err := a.withAdmin(ctx, func(ctx context.Context, adm *kadm.Client) (err error) {
			names, err = list(ctx, adm)
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
