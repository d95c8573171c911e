package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// TestSampledWarnings sees a hot warning cut, told of later, and errors whole.
func TestSampledWarnings(t *testing.T) {
	var out bytes.Buffer
	h := newSampler(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	at := time.Now()
	say := func(level slog.Level, msg string, after time.Duration) {
		for i, h := range []slog.Handler{h, h.WithAttrs([]slog.Attr{slog.String("component", "x")})} {
			r := slog.NewRecord(at.Add(after), level, msg, 0)
			r.AddAttrs(slog.Int("i", i))
			if err := h.Handle(context.Background(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 50 {
		say(slog.LevelWarn, "hot", time.Duration(i)*time.Millisecond)
	}
	say(slog.LevelWarn, "other", time.Second)
	for range 20 {
		say(slog.LevelError, "bad", time.Second)
	}
	say(slog.LevelWarn, "hot", sampleTime)
	count := func(s string) int { return bytes.Count(out.Bytes(), []byte(s)) }
	if count("msg=hot") != sampleBurst+2 || count("msg=other") != 2 || count("msg=bad") != 40 || count("suppressed=90") != 1 || count("suppressed") != 1 {
		t.Errorf("hot %d, other %d, bad %d:\n%s", count("msg=hot"), count("msg=other"), count("msg=bad"), out.Bytes())
	}
}

// TestSampledMessagesAreBounded keeps the memory of messages small.
func TestSampledMessagesAreBounded(t *testing.T) {
	h := newSampler(slog.DiscardHandler).(*sampler)
	for i := range 10 * sampleMessages {
		h.seen.take(fmt.Sprint(i), time.Now())
	}
	if n := len(h.seen.msgs); n > sampleMessages {
		t.Errorf("%d messages", n)
	}
}

// TestLogKeys reads the log of an agent as JSON.
func TestLogKeys(t *testing.T) {
	var out testenv.Output
	cfg := testConfig(t)
	a, err := Start(t.Context(), cfg, slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	a.component("storage").Warn("x")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := a.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	seen := map[string]bool{}
	for _, l := range lines {
		var line map[string]any
		if err := json.Unmarshal([]byte(l), &line); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		for _, k := range []string{"time", "level", "msg"} {
			if line[k] == nil {
				t.Errorf("no %s in %s", k, l)
			}
		}
		if line["agent"] == 1.0 && line["component"] != nil {
			seen[fmt.Sprint(line["component"], " ", line["msg"])] = true
		}
	}
	for _, want := range []string{"agent serving", "storage x"} {
		if !seen[want] {
			t.Errorf("no line %q with its component and the agent's id: %q", want, slices.Sorted(func(yield func(string) bool) {
				for k := range seen {
					if !yield(k) {
						return
					}
				}
			}))
		}
	}
}
