package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// The oldest version that has what is used: XTRIM with MINID.
const (
	minMajor = 6
	minMinor = 2
)

// serverInfo is what a server tells about itself, by the names of INFO and, as
// "config:NAME", of CONFIG GET.
type serverInfo map[string]string

// inspect asks the server that opts names, and refuses one that can't keep
// metadata. Managed servers forbid CONFIG, and some parts of INFO; what can't be
// known is warned of.
func inspect(ctx context.Context, opts *goredis.Options, log *slog.Logger) (serverInfo, error) {
	o := *opts
	o.DB = 0 // a cluster has no other
	o.ContextTimeoutEnabled = true
	c := goredis.NewClient(&o)
	defer c.Close()
	info, err := loaded(ctx, c, log)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !isReply(err) || refused(err):
		return nil, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	for _, name := range []string{"maxmemory-policy", "maxmemory", "save"} {
		if m, err := c.ConfigGet(ctx, name).Result(); err == nil {
			if v, ok := m[name]; ok {
				info["config:"+name] = v
			}
		}
	}
	return info, info.check()
}

// loaded returns what INFO says once the server has read its file, before which it refuses nearly everything else:
// servers and agents of a machine that was started again come up together.
func loaded(ctx context.Context, c *goredis.Client, log *slog.Logger) (serverInfo, error) {
	for said := false; ; {
		info := serverInfo{}
		text, err := c.Info(ctx).Result()
		if err != nil {
			return info, err
		}
		if info.read(text); info["loading"] != "1" {
			return info, nil
		}
		if !said {
			log.Warn("redis still reads its file: waiting for it", "redis", c.Options().Addr, "percent", info["loading_loaded_perc"], "seconds_left", info["loading_eta_seconds"])
			said = true
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return info, err
		}
	}
}

// read takes the lines NAME:VALUE of an INFO.
func (i serverInfo) read(text string) {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			i[name] = value
		}
	}
}

// first is the value of the first name that is known.
func (i serverInfo) first(names ...string) (string, bool) {
	for _, n := range names {
		if v, ok := i[n]; ok {
			return v, true
		}
	}
	return "", false
}

func (i serverInfo) policy() (string, bool) {
	return i.first("maxmemory_policy", "config:maxmemory-policy")
}

func (i serverInfo) clustered() bool {
	return i["redis_mode"] == "cluster" || i["cluster_enabled"] == "1"
}

// version returns 0, 0 when it is not known.
func (i serverInfo) version() (major, minor int) {
	a, b, _ := strings.Cut(i["redis_version"], ".")
	b, _, _ = strings.Cut(b, ".")
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	if errors.Join(err1, err2) != nil {
		return 0, 0
	}
	return major, minor
}

func (i serverInfo) check() error {
	if major, minor := i.version(); major > 0 && (major < minMajor || major == minMajor && minor < minMinor) {
		return fmt.Errorf("it is of version %s; want %d.%d or later", i["redis_version"], minMajor, minMinor)
	}
	policy, known := i.policy()
	if limit, _ := i.first("maxmemory", "config:maxmemory"); known && policy != "noeviction" && limit != "0" {
		return fmt.Errorf("its maxmemory-policy is %s, by which it may drop metadata: set maxmemory-policy to noeviction, or use a server of its own", policy)
	}
	return nil
}

// warnings are about what works but may be regretted.
func (i serverInfo) warnings() (out []string) {
	if major, _ := i.version(); major == 0 {
		out = append(out, "the version of redis can't be read: 6.2 or later is needed")
	}
	if _, known := i.policy(); !known {
		out = append(out, "the maxmemory-policy of redis can't be read: make sure that it is noeviction")
	}
	save, saveKnown := i["config:save"]
	switch aof, known := i["aof_enabled"]; {
	case !known:
		out = append(out, "whether redis writes to disk can't be read: make sure that it has an append-only file or replicas")
	case aof == "1":
	case saveKnown && save == "":
		out = append(out, "redis keeps nothing over a restart: set appendonly yes")
	default:
		out = append(out, "redis has no append-only file, so a restart loses what came after its last snapshot: set appendonly yes")
	}
	return out
}

// Time implements kv.Clock.
func (s *Store) Time(ctx context.Context) (time.Time, error) {
	if err := s.begin(); err != nil {
		return time.Time{}, err
	}
	defer s.calls.Done()
	c, err := s.node.client(ctx)
	if err == nil {
		var t time.Time
		if t, err = c.Time(ctx).Result(); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("ask %s for the time: %w", s.name, fault(err, false))
}
