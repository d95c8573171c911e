// Command verify checks every checksum of segments as they come into the bucket, as a Lambda function on the events of S3,
// sent by S3 itself or by a queue.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"

	"github.com/cirrolog/cirrolog/services/lambda/function"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

func main() { function.Start(newHandler) }

const bucketVariable = "CIRROLOG_BUCKET"

// readAhead is how many bytes of a segment one request asks for.
const readAhead = 8 << 20

// answerTime is left of the function's time to say what was found.
const answerTime = time.Second

type handler struct {
	bucket       objstore.Bucket
	name, prefix string // of the bucket, and of the keys in it
	log          *slog.Logger
}

func newHandler(log *slog.Logger) (lambda.Handler, error) {
	set, err := function.Settings([]string{bucketVariable}, nil)
	if err != nil {
		return nil, err
	}
	raw := set[bucketVariable]
	place, ok := strings.CutPrefix(raw, "s3://")
	if !ok {
		return nil, fmt.Errorf("%w: %s=%s: want s3://BUCKET/PREFIX?…", function.ErrSettings, bucketVariable, bucketurl.Redact(raw))
	}
	b, err := bucketurl.Open(context.Background(), raw, bucketurl.Options{})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", function.ErrSettings, bucketVariable, err)
	}
	h := &handler{bucket: b, log: log}
	place, _, _ = strings.Cut(place, "?")
	h.name, h.prefix, _ = strings.Cut(place, "/")
	if h.prefix, err = url.PathUnescape(h.prefix); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", function.ErrSettings, bucketVariable, err)
	}
	if h.prefix = strings.TrimRight(h.prefix, "/"); h.prefix != "" {
		h.prefix += "/"
	}
	return h, nil
}

// event is one of S3, or of SQS with such ones in its messages, or what S3 sends when notifications are set up.
type event struct {
	Records []json.RawMessage
	Event   string // s3:TestEvent
}

type source struct {
	EventSource string `json:"eventSource"`
}

// verified is a segment, with the keys of `segment verify -o json`.
type verified struct {
	Key     string `json:"file"`
	Kind    string `json:"kind"`
	Bytes   int64  `json:"bytes"`
	Batches int64  `json:"batches"`
	Records int64  `json:"records"`
	Base    int64  `json:"base"`
	Last    int64  `json:"last"`
	Gone    bool   `json:"gone,omitempty"` // it was deleted before it could be read
}

// report is the answer; a segment that is not whole is an error instead.
type report struct {
	Verified []verified `json:"verified"`
	Skipped  int        `json:"skipped"` // events of other objects, and other events
}

// Invoke implements lambda.Handler.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(answerTime, time.Until(end)/5)))
		defer cancel()
	}
	r := report{Verified: []verified{}}
	if err := h.each(ctx, payload, &r); err != nil {
		h.log.ErrorContext(ctx, "verify", "verified", len(r.Verified), "err", err)
		return nil, function.Failure(err)
	}
	return json.Marshal(r)
}

// each checks what an event names. All are looked at; several errors become one.
func (h *handler) each(ctx context.Context, payload []byte, r *report) error {
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		return fmt.Errorf("%w: %w", function.ErrNoEvent, err)
	}
	if e.Event == "s3:TestEvent" {
		r.Skipped++
		return nil
	}
	if len(e.Records) == 0 {
		return fmt.Errorf("%w: it has no Records of S3 or SQS", function.ErrNoEvent)
	}
	var all error // in one line, as Lambda shows it
	for i, raw := range e.Records {
		if err := h.record(ctx, raw, r); err != nil {
			if err = fmt.Errorf("record %d: %w", i, err); all != nil {
				err = fmt.Errorf("%w; %w", all, err)
			}
			all = err
		}
	}
	return all
}

func (h *handler) record(ctx context.Context, raw json.RawMessage, r *report) error {
	var s source
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("%w: %w", function.ErrNoEvent, err)
	}
	switch s.EventSource {
	case "aws:sqs":
		var m events.SQSMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("%w: %w", function.ErrNoEvent, err)
		}
		return h.each(ctx, []byte(m.Body), r)
	case "aws:s3":
		var o events.S3EventRecord
		if err := json.Unmarshal(raw, &o); err != nil {
			return fmt.Errorf("%w: %w", function.ErrNoEvent, err)
		}
		return h.object(ctx, &o, r)
	}
	return fmt.Errorf("%w: eventSource %.40q is neither aws:s3 nor aws:sqs", function.ErrNoEvent, s.EventSource)
}

// object checks a segment that was put.
func (h *handler) object(ctx context.Context, o *events.S3EventRecord, r *report) error {
	if o.S3.Bucket.Name == "" || o.S3.Object.Key == "" {
		return fmt.Errorf("%w: it names no object", function.ErrNoEvent)
	}
	if o.S3.Bucket.Name != h.name {
		return fmt.Errorf("%w: the event is of bucket %s, %s is of %s", function.ErrSettings, o.S3.Bucket.Name, bucketVariable, h.name)
	}
	key, ours := strings.CutPrefix(o.S3.Object.URLDecodedKey, h.prefix)
	if _, err := tiering.ParseSegmentKey(key); err != nil || !ours || !strings.HasPrefix(o.EventName, "ObjectCreated:") {
		r.Skipped++
		return nil
	}
	v, err := h.verify(ctx, key)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	r.Verified = append(r.Verified, v)
	h.log.InfoContext(ctx, "verified", "key", key, "bytes", v.Bytes, "records", v.Records, "gone", v.Gone)
	return nil
}

// verify reads a segment wholly. One that is gone was swept, or replaced by compaction: events come late, and twice.
func (h *handler) verify(ctx context.Context, key string) (verified, error) {
	info, err := h.bucket.Head(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) { // the answer to HEAD does not tell whether the bucket is there
		var r io.ReadCloser
		if r, info, err = h.bucket.Get(ctx, key, 0, 1); err == nil {
			err = fmt.Errorf("%w: it came while it was looked for", errors.Join(objstore.ErrUnknown, r.Close()))
		}
	}
	if errors.Is(err, objstore.ErrNotFound) {
		return verified{Key: key, Gone: true}, nil
	}
	if err != nil {
		return verified{}, err
	}
	rep, err := segment.Verify(objstore.NewReaderAt(ctx, h.bucket, key, readAhead), info.Size)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return verified{Key: key, Gone: true}, nil
	case errors.Is(err, segment.ErrCorrupt), errors.Is(err, segment.ErrTorn):
		return verified{}, fmt.Errorf("%w: %w", function.ErrDamaged, err)
	case err != nil:
		return verified{}, err
	case rep.Kind != segment.KindObject:
		return verified{}, fmt.Errorf("%w: it is a %s, not a segment of a bucket", function.ErrDamaged, rep.Kind)
	}
	return verified{Key: key, Kind: string(rep.Kind), Bytes: info.Size, Batches: rep.Batches, Records: rep.Records, Base: rep.Base, Last: rep.Last}, nil
}
