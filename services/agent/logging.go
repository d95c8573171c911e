package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Keys of log lines, beside slog's time, level and msg: agent, component, topic
// (or topic_id where the name is not known), partition, offset, err, dur_ms.

// component returns the log of a part of the agent.
func (a *Agent) component(name string) *slog.Logger { return a.log.With("component", name) }

const (
	// sampleBurst is how many equal warnings are written in sampleTime.
	sampleBurst = 10
	sampleTime  = 10 * time.Second
	// sampleMessages bounds the messages that are remembered.
	sampleMessages = 1000
)

// sampler is a slog.Handler that leaves out warnings when one message comes
// again and again: an outage of the bucket must not fill the disk with log. The
// next one that is written tells how many were left out. Errors are all written.
type sampler struct {
	slog.Handler
	seen *sampled
}

type sampled struct {
	mu   sync.Mutex
	msgs map[string]*sampleWindow
}

type sampleWindow struct {
	began      time.Time
	n, skipped int
}

func newSampler(h slog.Handler) slog.Handler {
	return &sampler{Handler: h, seen: &sampled{msgs: map[string]*sampleWindow{}}}
}

// take says whether a message is to be written, and how many before it were not.
func (s *sampled) take(msg string, now time.Time) (write bool, skipped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.msgs[msg]
	if w == nil {
		if len(s.msgs) >= sampleMessages {
			clear(s.msgs)
		}
		w = &sampleWindow{began: now}
		s.msgs[msg] = w
	}
	if now.Sub(w.began) >= sampleTime {
		skipped = w.skipped
		*w = sampleWindow{began: now}
	}
	if w.n >= sampleBurst {
		w.skipped++
		return false, 0
	}
	w.n++
	return true, skipped
}

// Handle implements slog.Handler.
func (s *sampler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level != slog.LevelWarn {
		return s.Handler.Handle(ctx, r)
	}
	write, skipped := s.seen.take(r.Message, r.Time)
	if !write {
		return nil
	}
	if skipped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", skipped))
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (s *sampler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sampler{Handler: s.Handler.WithAttrs(attrs), seen: s.seen}
}

// WithGroup implements slog.Handler.
func (s *sampler) WithGroup(name string) slog.Handler {
	return &sampler{Handler: s.Handler.WithGroup(name), seen: s.seen}
}
