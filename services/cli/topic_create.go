package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// createdTopic is what topic create prints.
type createdTopic struct {
	Name       string `json:"name"`
	ID         string `json:"id"`
	Partitions int32  `json:"partitions"`
	DryRun     bool   `json:"dry_run,omitempty"`
}

func (a *app) topicCreateCmd() *cobra.Command {
	var partitions int32
	var replication int16
	var configs []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "create NAME...",
		Short:   "Create topics",
		Example: "  cirrolog topic create orders -p 12 -c retention.ms=7d -c segment.bytes=64MiB",
		Args:    args(cobra.MinimumNArgs(1)),
	}
	f := cmd.Flags()
	f.Int32VarP(&partitions, "partitions", "p", -1, "number of partitions (-1: the cluster's default)")
	f.Int16VarP(&replication, "replication-factor", "r", -1, "accepted for Kafka's sake; the bucket replicates")
	f.StringArrayVarP(&configs, "config", "c", nil, "topic config KEY=VALUE; repeat for more. Values in ms and bytes may have a unit")
	f.BoolVar(&dryRun, "dry-run", false, "only check")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		kv, err := keyValues(configs)
		if err != nil {
			return err
		}
		conf := make(map[string]*string, len(kv))
		for k, v := range kv {
			conf[k] = &v
		}
		cl, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		defer cl.Close()
		adm := kadm.NewClient(cl)
		create := adm.CreateTopics
		if dryRun {
			create = adm.ValidateCreateTopics
		}
		resp, err := create(cmd.Context(), partitions, replication, conf, names...)
		if err != nil {
			return fmt.Errorf("create topics: %w", err)
		}
		if !dryRun {
			awaitKnown(cmd.Context(), cl, resp)
		}
		return a.printCreated(cmd, resp, dryRun)
	}
	return cmd
}

// knownWait bounds the wait for all agents to know a topic that one of them has made.
const knownWait = 5 * time.Second

// awaitKnown waits until every agent that can be reached knows the topics, so that the next command may ask any of them.
func awaitKnown(ctx context.Context, cl *kgo.Client, made kadm.CreateTopicResponses) {
	ctx, cancel := context.WithTimeout(ctx, knownWait)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	for name, r := range made {
		if r.Err == nil {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = &name
			req.Topics = append(req.Topics, t)
		}
	}
	if len(req.Topics) == 0 {
		return
	}
	for _, b := range cl.DiscoveredBrokers() {
		for !knows(ctx, b, req) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// knows tells whether a broker knows all topics that it is asked for, or does not answer.
func knows(ctx context.Context, b *kgo.Broker, req *kmsg.MetadataRequest) bool {
	resp, err := req.RequestWith(ctx, b)
	return err != nil || !slices.ContainsFunc(resp.Topics, func(t kmsg.MetadataResponseTopic) bool {
		return t.ErrorCode == kerr.UnknownTopicOrPartition.Code
	})
}

func (a *app) printCreated(cmd *cobra.Command, resp kadm.CreateTopicResponses, dryRun bool) error {
	out := []createdTopic{}
	t := table{header: []string{"TOPIC", "ID", "PARTITIONS"}}
	var errs []error
	for _, r := range resp.Sorted() {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("create topic %s: %w", r.Topic, responseError(r.Err, r.ErrMessage)))
			continue
		}
		out = append(out, createdTopic{Name: r.Topic, ID: topicID(r.ID), Partitions: r.NumPartitions, DryRun: dryRun})
		t.add(r.Topic, topicID(r.ID), r.NumPartitions)
	}
	if len(out) > 0 {
		if err := a.render(cmd.OutOrStdout(), out, &t); err != nil {
			return err
		}
	}
	return someFailed(errs, len(out))
}
