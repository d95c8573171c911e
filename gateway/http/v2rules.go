package httpgate

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// topicRules are configs of a topic that fail a whole batch, with the records
// of other requests in it, if one record breaks them.
type topicRules struct {
	compacted     bool
	before, after time.Duration // how old and how far ahead a timestamp may be; -1: no bound
}

func newTopicRules(configs []kadm.Config) topicRules {
	value := map[string]string{}
	for _, c := range configs {
		value[c.Key] = c.MaybeValue()
	}
	r := topicRules{before: -1, after: -1, compacted: slices.Contains(strings.Split(value["cleanup.policy"], ","), "compact")}
	if value["message.timestamp.type"] != "LogAppendTime" {
		r.before, r.after = millis(value["message.timestamp.before.max.ms"]), millis(value["message.timestamp.after.max.ms"])
	}
	return r
}

func millis(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > int64(1<<63-1)/int64(time.Millisecond) {
		return -1
	}
	return time.Duration(n) * time.Millisecond
}

// check finds what the brokers would refuse a whole batch for.
func (r topicRules) check(t kadm.TopicDetail, rec *kgo.Record) error {
	if err := checkRecord(rec, t); err != nil {
		return err
	}
	if r.compacted && rec.Key == nil {
		return fail(codeRefused, "The topic is compacted: a record needs a key.")
	}
	if rec.Timestamp.IsZero() || r.before < 0 && r.after < 0 {
		return nil
	}
	now := time.Now()
	if r.after >= 0 && rec.Timestamp.After(now.Add(r.after)) || r.before >= 0 && rec.Timestamp.Before(now.Add(-r.before)) {
		return fail(codeRefused, "The timestamp is too far from now for message.timestamp.before.max.ms or message.timestamp.after.max.ms of the topic.")
	}
	return nil
}

// rulesCache keeps the rules of topics for a moment.
type rulesCache struct {
	admin *kadm.Client
	mu    sync.Mutex
	known map[string]cachedRules
}

type cachedRules struct {
	rules topicRules
	until time.Time
}

// get returns the rules of a topic, at most topicTime old. If the brokers
// don't tell there are none: what comes next fails for the same reason, or the
// brokers check alone.
func (c *rulesCache) get(ctx context.Context, topic string) topicRules {
	now := time.Now()
	c.mu.Lock()
	k, ok := c.known[topic]
	c.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.rules
	}
	ctx, cancel := context.WithTimeout(ctx, adminTime)
	defer cancel()
	k = cachedRules{rules: newTopicRules(nil)}
	if all, err := c.admin.DescribeTopicConfigs(ctx, topic); err == nil {
		if one, err := all.On(topic, nil); err == nil && one.Err == nil {
			k.rules = newTopicRules(one.Configs)
		}
	}
	k.until = time.Now().Add(topicTime)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= topicsKnown {
		clear(c.known)
	}
	c.known[topic] = k
	return k.rules
}
