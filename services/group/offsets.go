package group

import (
	"errors"
	"slices"
	"time"
)

// offset is a committed offset. Times are in Unix milliseconds.
type offset struct {
	offset   int64
	commit   int64
	expire   int64 // given by an old client's retention; -1: none
	epoch    int32
	topicID  TopicID
	metadata string
}

// key names a partition.
type key struct {
	topic     string
	partition int32
}

// flyingOffset is an offset that is being written.
type flyingOffset struct {
	key
	offset offset
}

func (g *group) offset(topic string, partition int32) (offset, bool) {
	o, ok := g.offsets[topic][partition]
	return o, ok
}

func (g *group) setOffset(topic string, partition int32, o offset) {
	t := g.offsets[topic]
	if t == nil {
		if g.offsets == nil {
			g.offsets = map[string]map[int32]offset{}
		}
		t = map[int32]offset{}
		g.offsets[topic] = t
	}
	t[partition] = o
}

func (g *group) removeOffset(topic string, partition int32) {
	if t := g.offsets[topic]; t != nil {
		if delete(t, partition); len(t) == 0 {
			delete(g.offsets, topic)
		}
	}
}

// fly counts commits of a partition that are not yet written.
func (g *group) fly(k key, by int) {
	t := g.flying[k.topic]
	if t == nil {
		if g.flying == nil {
			g.flying = map[string]map[int32]int{}
		}
		t = map[int32]int{}
		g.flying[k.topic] = t
	}
	if t[k.partition] += by; t[k.partition] == 0 {
		if delete(t, k.partition); len(t) == 0 {
			delete(g.flying, k.topic)
		}
	}
}

// Commit stores offsets. They are visible, and the request is answered, when
// they are written.
func (c *Coordinator) Commit(t Ticket, req CommitRequest, now time.Time) (fx Effects) {
	g, err := c.checkCommit(&req)
	if err == nil && (g.state == Stable || g.state == PreparingRebalance) {
		if m := g.members[req.MemberID]; m != nil {
			c.touch(g, m, now)
		}
	}
	r := &CommitResponse{Topics: make([]TopicResult, 0, len(req.Topics))}
	count := 0
	for _, topic := range req.Topics {
		count += len(topic.Partitions)
	}
	records := make([]Record, 0, count)
	flying := make([]flyingOffset, 0, count)
	for _, topic := range req.Topics {
		tr := TopicResult{topic.Name, topic.ID, make([]PartitionResult, 0, len(topic.Partitions))}
		for _, p := range topic.Partitions {
			perr := err
			if perr == nil {
				perr = c.checkOffset(topic.Name, p)
			}
			tr.Partitions = append(tr.Partitions, PartitionResult{p.Partition, perr})
			if perr != nil {
				continue
			}
			o := offset{p.Offset, now.UnixMilli(), -1, p.LeaderEpoch, topic.ID, p.Metadata}
			if req.Retention > 0 {
				o.expire = now.Add(req.Retention).UnixMilli()
			}
			k := key{topic.Name, p.Partition}
			g.fly(k, 1)
			records = append(records, offsetRecord(g.id, k, &o))
			flying = append(flying, flyingOffset{k, o})
		}
		r.Topics = append(r.Topics, tr)
	}
	if len(records) == 0 {
		fx.Answers = append(fx.Answers, Answer{t, r})
		c.drop(g)
		return fx
	}
	c.write(&fx, g, records, func(err error, _ time.Time, fx *Effects) {
		for i := range flying {
			k := flying[i].key
			g.fly(k, -1)
			if err == nil {
				g.setOffset(k.topic, k.partition, flying[i].offset)
			}
		}
		switch {
		case errors.Is(err, ErrRecordTooLarge):
			failed(r, ErrInvalidCommitOffsetSize)
		case err != nil:
			failed(r, storeError(err))
		}
		fx.Answers = append(fx.Answers, Answer{t, r})
	}).unload = Answer{t, r}
	return fx
}

func (c *Coordinator) checkOffset(topic string, p CommitPartition) error {
	if topic == "" || len(topic) > MaxTopicName {
		return ErrInvalidTopic
	}
	if len(p.Metadata) > c.cfg.MaxOffsetMetadata || len(p.Metadata) > MaxString {
		return ErrOffsetMetadataTooLarge
	}
	return nil
}

// checkCommit says whether the sender may commit. A group that does not exist
// is made for a consumer that has no membership.
func (c *Coordinator) checkCommit(req *CommitRequest) (*group, error) {
	if len(req.GroupID) > MaxString {
		return nil, ErrInvalidGroupID
	}
	g := c.groups[req.GroupID]
	switch {
	case g == nil && req.Generation < 0:
		return c.group(req.GroupID)
	case g == nil && req.Version >= 9:
		return nil, ErrGroupIDNotFound
	case g == nil:
		return nil, ErrIllegalGeneration
	case g.state == Dead:
		return nil, ErrCoordinatorNotAvailable
	case g.state == Empty && req.Generation < 0:
		return g, nil
	}
	if _, err := g.check(req.MemberID, req.InstanceID); err != nil {
		return nil, err
	}
	if req.Generation != g.generation {
		return nil, ErrIllegalGeneration
	}
	if g.state == CompletingRebalance {
		return nil, ErrRebalanceInProgress
	}
	return g, nil
}

// FetchOffsets reads committed offsets. A group that does not exist has none.
func (c *Coordinator) FetchOffsets(req FetchRequest) []FetchTopic {
	g := c.groups[req.GroupID]
	if g == nil || g.state == Dead {
		g = newGroup(req.GroupID)
	}
	if req.Topics == nil {
		req.Topics = g.allOffsets(req.RequireStable)
	}
	out := make([]FetchTopic, 0, len(req.Topics))
	for _, t := range req.Topics {
		ft := FetchTopic{t.Name, t.ID, make([]FetchPartition, 0, len(t.Partitions))}
		for _, p := range t.Partitions {
			fp := FetchPartition{Partition: p, Offset: -1, LeaderEpoch: -1}
			o, ok := g.offset(t.Name, p)
			switch {
			case req.RequireStable && g.flying[t.Name][p] > 0:
				fp.Err = ErrUnstableOffsetCommit
			case ok && (t.ID == o.topicID || t.ID == TopicID{} || o.topicID == TopicID{}):
				fp.Offset, fp.LeaderEpoch, fp.Metadata = o.offset, o.epoch, o.metadata
				fp.CommitTime = time.UnixMilli(o.commit)
			}
			ft.Partitions = append(ft.Partitions, fp)
		}
		out = append(out, ft)
	}
	return out
}

// allOffsets names all partitions with an offset, and on demand those that
// have one in flight, in order.
func (g *group) allOffsets(withFlying bool) []TopicPartitions {
	var keys []key
	for topic, t := range g.offsets {
		for p := range t {
			keys = append(keys, key{topic, p})
		}
	}
	if withFlying {
		for topic, t := range g.flying {
			for p := range t {
				if _, ok := g.offset(topic, p); !ok {
					keys = append(keys, key{topic, p})
				}
			}
		}
	}
	slices.SortFunc(keys, compareKeys)
	var out []TopicPartitions
	for _, k := range keys {
		if len(out) == 0 || out[len(out)-1].Name != k.topic {
			out = append(out, TopicPartitions{Name: k.topic})
		}
		last := &out[len(out)-1]
		last.Partitions = append(last.Partitions, k.partition)
	}
	return out
}

// DeleteOffsets removes committed offsets of topics that the group does not
// consume now.
func (c *Coordinator) DeleteOffsets(t Ticket, req OffsetDeleteRequest, _ time.Time) (fx Effects) {
	r := &OffsetDeleteResponse{}
	g := c.groups[req.GroupID]
	switch {
	case g == nil || g.state == Dead:
		r.Err = ErrGroupIDNotFound
	case g.state != Empty && g.protocolType != ConsumerType:
		r.Err = ErrNonEmptyGroup
	}
	if r.Err != nil {
		fx.Answers = append(fx.Answers, Answer{t, r})
		return fx
	}
	var keys []key
	for _, topic := range req.Topics {
		tr := TopicResult{Name: topic.Name, ID: topic.ID}
		subscribed := g.subscribedTo(topic.Name)
		for _, p := range topic.Partitions {
			var err error
			if subscribed {
				err = ErrGroupSubscribedToTopic
			} else if _, ok := g.offset(topic.Name, p); ok || g.flying[topic.Name][p] > 0 {
				keys = append(keys, key{topic.Name, p})
			}
			tr.Partitions = append(tr.Partitions, PartitionResult{p, err})
		}
		r.Topics = append(r.Topics, tr)
	}
	if len(keys) == 0 {
		fx.Answers = append(fx.Answers, Answer{t, r})
		return fx
	}
	c.tombstones(&fx, g, keys, func(err error, fx *Effects) {
		if err != nil {
			failed(r, storeError(err))
		}
		fx.Answers = append(fx.Answers, Answer{t, r})
	}).unload = Answer{t, r}
	return fx
}

// tombstones removes offsets; then is called when that is written.
func (c *Coordinator) tombstones(fx *Effects, g *group, keys []key, then func(error, *Effects)) *pendingWrite {
	records := make([]Record, len(keys))
	for i, k := range keys {
		records[i] = offsetRecord(g.id, k, nil)
	}
	return c.write(fx, g, records, func(err error, _ time.Time, fx *Effects) {
		if err == nil {
			for _, k := range keys {
				g.removeOffset(k.topic, k.partition)
			}
		}
		if then != nil {
			then(err, fx)
		}
	})
}

// DropTopic removes the offsets of a deleted topic from all groups.
func (c *Coordinator) DropTopic(topic string) (fx Effects) {
	for _, id := range c.sorted() {
		g := c.groups[id]
		if g.state == Dead {
			continue // all its offsets go already
		}
		var keys []key
		for p := range g.offsets[topic] {
			keys = append(keys, key{topic, p})
		}
		for p := range g.flying[topic] {
			if _, ok := g.offset(topic, p); !ok {
				keys = append(keys, key{topic, p})
			}
		}
		slices.SortFunc(keys, compareKeys)
		if len(keys) > 0 {
			c.tombstones(&fx, g, keys, nil)
		}
	}
	return fx
}

// ExpireOffsets removes the offsets that nobody has used for the retention
// time, and groups that have become empty of members and offsets. It is to be
// called every few minutes.
func (c *Coordinator) ExpireOffsets(now time.Time) (fx Effects) {
	for _, id := range c.sorted() {
		g := c.groups[id]
		if g.state == Dead {
			continue
		}
		keys, all := g.expiredOffsets(now, c.cfg.OffsetRetention)
		switch {
		case all && g.state == Empty && len(g.pending)+len(g.flying) == 0:
			c.delete(g, &fx, func(error, *Effects) {})
		case len(keys) > 0:
			c.tombstones(&fx, g, keys, nil)
		}
	}
	return fx
}

// expiredOffsets names what has expired, and says whether that is all.
//
// Offsets of an empty group expire by the time since when it is empty; those of
// a simple consumer, which is never a member, by the time of their commit, and
// so do those of topics that a stable group of consumers does not consume.
func (g *group) expiredOffsets(now time.Time, retention time.Duration) (keys []key, all bool) {
	byCommit := false
	switch {
	case g.protocolType == "", g.state == Empty && g.since.IsZero():
		byCommit = true
	case g.state == Empty:
	case g.state == Stable && g.protocolType == ConsumerType && g.subscribed != nil:
		byCommit = true
	default:
		return nil, false
	}
	all = true
	for topic, t := range g.offsets {
		subscribed := g.subscribedTo(topic)
		for p, o := range t {
			base := g.since.UnixMilli()
			if byCommit {
				base = o.commit
			}
			expired := now.UnixMilli()-base >= retention.Milliseconds()
			if o.expire >= 0 {
				expired = now.UnixMilli() >= o.expire
			}
			if subscribed || !expired || g.flying[topic][p] > 0 {
				all = false
				continue
			}
			keys = append(keys, key{topic, p})
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys, all
}
