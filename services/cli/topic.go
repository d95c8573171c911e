package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/storage/ids"
)

func (a *app) topicCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "topic", Short: "Create, show, change and delete topics",
		Args: knownVerb, RunE: needsVerb,
	}
	cmd.AddCommand(a.topicCreateCmd(), a.topicListCmd(), a.topicDescribeCmd(), a.topicConfigCmd(),
		a.topicRemoveCmd(), a.topicStorageCmd(), a.topicTrimCmd())
	return cmd
}

// needsVerb is the RunE of commands that only group others.
func needsVerb(cmd *cobra.Command, _ []string) error {
	return fmt.Errorf("%w: %s needs a verb: see %s --help", errUsage, cmd.CommandPath(), cmd.CommandPath())
}

// knownVerb is the Args of commands that only group others.
func knownVerb(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("%w: unknown verb %q, the nearest is `%s %s`", errUsage, given[0], cmd.CommandPath(), nearestOf(given[0], names))
}

// oneTopic returns the details of a topic, or an error that names it.
func oneTopic(ctx context.Context, adm *kadm.Client, name string) (kadm.TopicDetail, error) {
	topics, err := adm.ListTopicsWithInternal(ctx, name)
	if err != nil {
		return kadm.TopicDetail{}, fmt.Errorf("look up topic %s: %w", name, err)
	}
	t, ok := topics[name]
	if !ok {
		return t, fmt.Errorf("look up topic %s: the cluster does not answer for it", name)
	}
	if errors.Is(t.Err, kerr.UnknownTopicOrPartition) {
		return t, fmt.Errorf("there is no topic %s (%w): `cirrolog topic ls` lists what there is", name, t.Err)
	}
	if t.Err != nil {
		return t, fmt.Errorf("look up topic %s: %w", name, t.Err)
	}
	return t, nil
}

// responseError joins Kafka's code and the server's own words.
func responseError(err error, message string) error {
	if err == nil || message == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", message, err)
}

// someFailed turns the errors of several items into one; with some successes
// the exit code is that of partial work.
func someFailed(errs []error, done int) error {
	err := errors.Join(errs...)
	if err != nil && done > 0 {
		return fmt.Errorf("%w: %w", errPartial, err)
	}
	return err
}

// keyValues parses KEY=VALUE arguments. Values of configs in bytes and ms may
// have a unit: retention.ms=7d, segment.bytes=1MiB.
func keyValues(list []string) (map[string]string, error) {
	out := make(map[string]string, len(list))
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%w: %q: want KEY=VALUE", errUsage, s)
		}
		if _, twice := out[k]; twice {
			return nil, fmt.Errorf("%w: %s is given twice", errUsage, k)
		}
		v, err := configValue(k, v)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errUsage, k, err)
		}
		out[k] = v
	}
	return out, nil
}

func configValue(key, value string) (string, error) {
	if _, err := strconv.ParseInt(value, 10, 64); err == nil {
		return value, nil
	}
	switch {
	case strings.HasSuffix(key, ".ms"):
		d, err := parseDuration(value)
		return strconv.FormatInt(d.Milliseconds(), 10), err
	case strings.HasSuffix(key, ".bytes"):
		n, err := parseBytes(value)
		return strconv.FormatInt(n, 10), err
	}
	return value, nil
}

// sortedKeys returns the keys of m in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// topicID prints a topic id as everywhere else in Cirrolog.
func topicID(id kadm.TopicID) string { return ids.TopicID(id).String() }
