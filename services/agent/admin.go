package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/lead"
)

// adminHandler serves the admin port: health, metrics, pprof and the JSON API
// for what has no Kafka API (docs/admin-api.md).
func (a *Agent) adminHandler() http.Handler {
	mux := http.NewServeMux()
	// A series that can't be told must not cost the others. Compression takes
	// longer than all the rest of a large scrape.
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(a.gather), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, DisableCompression: true,
		ErrorLog: slog.NewLogLogger(a.component("admin").Handler(), slog.LevelWarn), MaxRequestsInFlight: maxScrapes}))
	// The process lives and has started when it answers; other names are those
	// that probes of similar servers use.
	for _, p := range []string{"/livez", "/healthy", "/startupz"} {
		mux.HandleFunc("GET "+p, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	}
	for _, p := range []string{"/readyz", "/ready", "/status/ready", "/v1/status"} {
		mux.HandleFunc("GET "+p, a.ready)
	}
	mux.HandleFunc("GET /v1/topics/{topic}/storage", a.topicStorage)
	mux.HandleFunc("GET /v1/topics/{topic}/segments", a.segments)
	mux.HandleFunc("POST /v1/topics/{topic}/roll", a.roll)
	mux.HandleFunc("POST /v1/sweep", a.sweep)
	mux.HandleFunc("GET /v1/cluster/state", a.clusterState)
	mux.HandleFunc("GET /v1/cluster/partitions", a.clusterPartitions)
	mux.HandleFunc("POST /v1/agents/{node}/drain", a.drain(true))
	mux.HandleFunc("POST /v1/agents/{node}/undrain", a.drain(false))
	mux.HandleFunc("GET /v1/disks", a.disks)
	mux.HandleFunc("POST /v1/disks/{disk}/abandon", a.abandonDisk)
	mux.Handle("GET /debug/", loopbackOnly(a.debugHandler()))
	return mux
}

// maxScrapes bounds the scrapes at work.
const maxScrapes = 4

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}

func writeError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, broker.ErrUnknownTopic), errors.Is(err, broker.ErrUnknownPartition), errors.Is(err, lead.ErrUnknownDisk), errors.Is(err, metadata.ErrUnknownNode):
		status = http.StatusNotFound
	case errors.Is(err, lead.ErrDiskInUse), errors.Is(err, errNobody):
		status = http.StatusConflict
	case errors.Is(err, metadata.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errBadQuery):
		status = http.StatusBadRequest
	}
	writeJSON(w, status, map[string]any{"error": err.Error()})
}

var errBadQuery = errors.New("bad query")

func (a *Agent) topicStorage(w http.ResponseWriter, r *http.Request) {
	t, parts, err := a.broker.TopicStorage(r.PathValue("topic"))
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"topic": t.Name, "id": t.ID.String(), "partitions": parts})
}

// maxSegments bounds one answer.
const maxSegments = 100_000

func (a *Agent) segments(w http.ResponseWriter, r *http.Request) {
	t := a.broker.Topic(r.PathValue("topic"))
	if t == nil {
		writeError(w, fmt.Errorf("%w: %s", broker.ErrUnknownTopic, r.PathValue("topic")))
		return
	}
	q := query{r: r}
	one, from, to := q.int("partition", -1), q.int("from", 0), q.int("to", math.MaxInt64)
	fromTS, toTS := q.int("from_ts", 0), q.int("to_ts", math.MaxInt64)
	if q.err != nil {
		writeError(w, q.err)
		return
	}
	if one >= int64(t.Partitions) {
		writeError(w, fmt.Errorf("%w: %s has partitions 0 to %d", broker.ErrUnknownPartition, t.Name, t.Partitions-1))
		return
	}
	out := []broker.SegmentInfo{}
	for i := range t.Partitions {
		if one >= 0 && int64(i) != one {
			continue
		}
		p, err := a.broker.Partition(t.ID, i)
		if err == nil {
			err = a.broker.Segments(r.Context(), p, func(s broker.SegmentInfo) error {
				if s.Last >= from && s.Base < to && (s.MaxTimestamp < 0 || s.MaxTimestamp >= fromTS) && s.MinTimestamp < toTS && len(out) < maxSegments {
					out = append(out, s)
				}
				return nil
			})
		}
		if err != nil {
			writeError(w, err)
			return
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"topic": t.Name, "id": t.ID.String(), "segments": out})
}

// roll closes the active segments of a topic now, so that they are tiered.
func (a *Agent) roll(w http.ResponseWriter, r *http.Request) {
	if err := a.broker.Roll(r.PathValue("topic")); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusAccepted, map[string]any{})
}

// sweep runs one sweep of the bucket.
func (a *Agent) sweep(w http.ResponseWriter, r *http.Request) {
	q := query{r: r}
	grace := q.int("grace_ms", a.cfg.SweepGrace.Milliseconds())
	if q.err != nil {
		writeError(w, q.err)
		return
	}
	report, err := a.broker.Sweeper().Segments(r.Context(), time.Duration(grace)*time.Millisecond, r.URL.Query().Get("dry_run") == "true")
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, report)
}

// query parses integers; the first error stays.
type query struct {
	r   *http.Request
	err error
}

func (q *query) int(name string, def int64) int64 {
	s := q.r.URL.Query().Get(name)
	if s == "" {
		return def
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil && q.err == nil {
		q.err = fmt.Errorf("%w: %s=%q is not a number", errBadQuery, name, s)
	}
	return v
}
