package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestParseOffsetSpec(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	hour := now.Add(-time.Hour).UnixMilli()
	for s, want := range map[string]offsetSpec{
		"start":       {kind: atStart, until: noEnd},
		"end":         {kind: atEnd, until: noEnd},
		"0":           {kind: atOffset, until: noEnd},
		"42":          {kind: atOffset, n: 42, until: noEnd},
		"+3":          {kind: afterStart, n: 3, until: noEnd},
		"-5":          {kind: beforeEnd, n: 5, until: noEnd},
		"@1000":       {kind: atTime, since: 1000, until: noEnd},
		"@1000:@2000": {kind: atTime, since: 1000, until: 2000},
		"@1000:end":   {kind: atTime, since: 1000, until: endOfTime},
		"@-1h":        {kind: atTime, since: hour, until: noEnd},
		"@-1h:@-0":    {kind: atTime, since: hour, until: now.UnixMilli()},
		"@2026-03-01": {kind: atTime, since: now.Add(-12 * time.Hour).UnixMilli(), until: noEnd},
		"@2026-03-01T11:00:00Z:@2026-03-01T12:00:00Z": {kind: atTime, since: hour, until: now.UnixMilli()},
	} {
		got, err := parseOffsetSpec(s, now)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "x", "+", "-", "--1", "+-1", "-+1", "++1", "1.5", "@", "@x", "@2000:@1000", "@1:@", "@-", "@1969-01-01", "99999999999999999999"} {
		if got, err := parseOffsetSpec(s, now); !errors.Is(err, errUsage) {
			t.Errorf("%q: %+v, %v, want a usage error", s, got, err)
		}
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "4096": 4096, "1KiB": 1024, "1kB": 1000, "512MiB": 512 << 20, "1.5GiB": 3 << 29} {
		if got, err := parseBytes(s); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "x", "-1", "1XB", "99999999999EiB"} {
		if got, err := parseBytes(s); err == nil {
			t.Errorf("parseBytes(%q) = %d, want an error", s, got)
		}
	}
	for s, want := range map[string]time.Duration{"0": 0, "500ms": 500 * time.Millisecond, "7d": 168 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %s, %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "7", "-1h", "d", "-1d", "1d1", "1dd", "999999999d"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("parseDuration(%q) = %s, want an error", s, got)
		}
	}
}

func TestKeyValues(t *testing.T) {
	got, err := keyValues([]string{"retention.ms=7d", "segment.bytes=1MiB", "retention.bytes=-1", "cleanup.policy=compact,delete", "x=a=b"})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"retention.ms": "604800000", "segment.bytes": "1048576", "retention.bytes": "-1", "cleanup.policy": "compact,delete", "x": "a=b"} {
		if got[k] != want {
			t.Errorf("%s = %q, want %q", k, got[k], want)
		}
	}
	for _, bad := range [][]string{{"x"}, {"=1"}, {"a=1", "a=2"}, {"retention.ms=soon"}, {"segment.bytes=big"}} {
		if _, err := keyValues(bad); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want a usage error", bad, err)
		}
	}
}

// serveFlags are the flags of serve, with three of their values.
func serveFlags() (f *pflag.FlagSet, dir, addr *string, size *byteSize) {
	f = pflag.NewFlagSet("serve", pflag.ContinueOnError)
	size = new(byteSize)
	f.String("config", "", "")
	f.Var(size, "wal-size", "")
	return f, f.String("data-dir", "data", ""), f.String("kafka-addr", "", ""), size
}

func TestLayer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("data-dir: from-file\nkafka-addr: from-file\nwal-size: 64MiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CIRROLOG_KAFKA_ADDR", "from-env")
	t.Setenv("CIRROLOG_BROKERS", "a:1") // of the client verbs
	f, dir, addr, size := serveFlags()
	if err := f.Parse([]string{"--data-dir", "from-flag"}); err != nil {
		t.Fatal(err)
	}
	if err := layer(f, path); err != nil {
		t.Fatal(err)
	}
	if *dir != "from-flag" || *addr != "from-env" || *size != 64<<20 {
		t.Errorf("data-dir %q, kafka-addr %q, wal-size %d: want flag, environment, file", *dir, *addr, *size)
	}
}

func TestLayerOfMaps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("topic-config:\n  retention.ms: 7\n  local:\n    retention.bytes: 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := func() (*pflag.FlagSet, *map[string]string) {
		f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		return f, f.StringToString("topic-config", nil, "")
	}
	f, got := flags()
	if err := layer(f, path); err != nil || len(*got) != 2 || (*got)["retention.ms"] != "7" || (*got)["local.retention.bytes"] != "9" {
		t.Errorf("topic-config is %v, %v", *got, err)
	}
	t.Setenv("CIRROLOG_TOPIC_CONFIG", "segment.ms=1")
	f, got = flags()
	if err := layer(f, path); err != nil || len(*got) != 1 || (*got)["segment.ms"] != "1" {
		t.Errorf("topic-config is %v, %v: want the environment's", *got, err)
	}
}

func TestLayerNamesTheNearest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	for _, c := range []struct{ yaml, env, want string }{
		{"data_dir: x\n", "", `data_dir: unknown key, the nearest is data-dir`},
		{"wal-size:\n  least: 3\n", "", `wal-size.least: unknown key, the nearest is wal-size`},
		{"config: x\n", "", `config: unknown key`},
		{"wal-size: big\n", "", `wal-size = "big"`},
		{"", "CIRROLOG_KAFKA_ADR", "the nearest is CIRROLOG_KAFKA_ADDR"},
	} {
		if err := os.WriteFile(path, []byte(c.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.env != "" {
			t.Setenv(c.env, "x")
		}
		f, _, _, _ := serveFlags()
		if err := layer(f, path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %s: %v, want %q", c.yaml, c.env, err, c.want)
		}
	}
}

func TestFinalNewline(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a\n", "a\n": "a\n", "a\nb": "a\nb\n", "\n": "\n"} {
		got, err := io.ReadAll(&finalNewline{r: strings.NewReader(in)})
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestPlan(t *testing.T) {
	s := planSegment{Tier: "bucket", Base: 100, Last: 199, Size: 100 << 20}
	s.clip(partRange{From: 150, To: 1000})
	s.price(1)
	if s.Bytes != 50<<20 || s.Gets != 14 {
		t.Errorf("half of 100 MiB: %d bytes, %d GETs, want %d and 1+13", s.Bytes, s.Gets, 50<<20)
	}
	out := s
	out.clip(partRange{From: 200, To: 300})
	if out.Bytes != 0 {
		t.Errorf("outside of the range: %d bytes, want 0", out.Bytes)
	}
	p := makePlan("t", []partRange{{From: 150, To: 1000}}, []planSegment{s, {Tier: "local", Bytes: 50 << 20}}, 10<<20)
	if p.Offsets != 850 || p.Bytes != 100<<20 || p.BucketBytes != 50<<20 || p.Seconds != 10 || p.CostUSD != 14*pricePerGet {
		t.Errorf("plan: %+v", p)
	}
}
