// Command sweep keeps the bucket of a cluster clean as a Lambda function on a schedule, with no agent running: it applies
// retention to partitions that nobody serves and deletes what the bucket proves that nobody needs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/spf13/pflag"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv/kvurl"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lambda/function"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

func main() { function.Start(newHandler) }

const (
	bucketVariable   = "CIRROLOG_BUCKET"
	metadataVariable = "CIRROLOG_METADATA"
	graceVariable    = "CIRROLOG_SWEEP_GRACE"
	dryRunVariable   = "CIRROLOG_DRY_RUN"
	topicVariable    = "CIRROLOG_TOPIC_CONFIG"
)

// answerTime is left of the function's time to say how far it came.
const answerTime = 2 * time.Second

type handler struct {
	bucket, metadata string
	grace            time.Duration // 0: 1 h
	dryRun           bool
	expire           bool
	defaults         *metadata.Defaults // of the agents' topic configs; retention must not go by others
	log              *slog.Logger
}

func newHandler(log *slog.Logger) (lambda.Handler, error) {
	set, err := function.Settings([]string{bucketVariable, metadataVariable}, []string{graceVariable, dryRunVariable, topicVariable})
	if err != nil {
		return nil, err
	}
	h := &handler{bucket: set[bucketVariable], metadata: set[metadataVariable], expire: set[topicVariable] != "", log: log}
	if v := set[dryRunVariable]; v != "" {
		if h.dryRun, err = strconv.ParseBool(v); err != nil {
			return nil, fmt.Errorf("%w: %s=%s: want true or false", function.ErrSettings, dryRunVariable, v)
		}
	}
	if h.defaults, err = topicDefaults(set[topicVariable]); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", function.ErrSettings, topicVariable, err)
	}
	if v := set[graceVariable]; v != "" {
		if h.grace, err = time.ParseDuration(v); err != nil || h.grace <= 0 {
			return nil, fmt.Errorf("%w: %s=%s: want a duration such as 1h", function.ErrSettings, graceVariable, v)
		}
	}
	return h, nil
}

// topicDefaults parses what the agents are given as --topic-config; none: nothing.
func topicDefaults(v string) (*metadata.Defaults, error) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	configs := f.StringToString("topic-config", nil, "")
	if v != "" && v != "none" {
		if err := f.Set("topic-config", v); err != nil {
			return nil, fmt.Errorf("want KEY=VALUE,… as the agents have it, or none: %w", err)
		}
	}
	return metadata.NewClusterDefaults(*configs)
}

// request is what an event may ask for; scheduled ones ask for nothing.
type request struct {
	DryRun bool `json:"dry_run"`
}

// report is the answer.
type report struct {
	DryRun   bool                `json:"dry_run"`
	Segments tiering.SweepReport `json:"segments"`
	Streams  broker.SweptStreams `json:"streams"` // not looked at in a dry run
	Expired  broker.Expired      `json:"expired"`
}

// Invoke implements lambda.Handler.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	var req request
	if err := json.Unmarshal(payload, &req); err != nil {
		return nil, function.Failure(fmt.Errorf("%w: %w", function.ErrNoEvent, err))
	}
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(answerTime, time.Until(end)/5)))
		defer cancel()
	}
	r := report{DryRun: h.dryRun || req.DryRun}
	err := h.sweep(ctx, &r)
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelError
	}
	h.log.Log(ctx, level, "sweep", "deleted", r.Segments.Deleted.Objects, "bytes", r.Segments.Deleted.Bytes, "streams", r.Streams.Objects,
		"expired", r.Expired.Segments, "dry_run", r.DryRun, "err", err)
	if err != nil {
		return nil, function.Failure(err)
	}
	return json.Marshal(r)
}

// sweep opens all anew: a function may have stood still for hours. First goes what former runs have expired, then more is.
func (h *handler) sweep(ctx context.Context, r *report) error {
	if strings.HasPrefix(h.bucket, "dir://") { // it would be made
		return fmt.Errorf("%w: %s=%s: a function has no such directory", function.ErrSettings, bucketVariable, h.bucket)
	}
	b, err := bucketurl.Open(ctx, h.bucket, bucketurl.Options{})
	if err != nil {
		return fmt.Errorf("%w: %s: %w", function.ErrSettings, bucketVariable, err)
	}
	defer func() { _ = objstore.Close(b) }()
	store, _, err := kvurl.Open(ctx, h.metadata, h.log)
	if errors.Is(err, kvurl.ErrURL) {
		return fmt.Errorf("%w: %s: %w", function.ErrSettings, metadataVariable, err)
	}
	if err != nil {
		return fmt.Errorf("open metadata store: %w", err)
	}
	defer func() { _ = store.Close() }()
	meta, err := metadata.OpenTool(ctx, metadata.Options{KV: store, Bucket: b, Incarnation: ids.NewIncarnation(), Logger: h.log, Defaults: h.defaults})
	if err != nil {
		return err
	}
	defer func() { _ = meta.Close() }()
	s := broker.NewSweeper(broker.SweeperOptions{Meta: meta, Bucket: b, Logger: h.log})
	if r.Segments, err = s.Segments(ctx, h.grace, r.DryRun); err != nil {
		return err
	}
	if !r.DryRun {
		if r.Streams, err = s.Streams(ctx); err != nil {
			return err
		}
	}
	if h.expire {
		if r.Expired, err = s.Expire(ctx, h.grace, r.DryRun); err != nil {
			return err
		}
	}
	if n := r.Segments.By[tiering.SweepFailed].Objects; n > 0 {
		return fmt.Errorf("%d objects could not be deleted or indexed; %d were", n, r.Segments.Deleted.Objects)
	}
	return nil
}
