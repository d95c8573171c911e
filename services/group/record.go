package group

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The records of __consumer_offsets, in Kafka's own formats. The first two
// bytes of a key are its version, which is also its type: 0 and 1 are offsets,
// 2 is a group; later ones belong to other protocols.
//
//	OffsetCommitKey    1: group, topic, partition
//	OffsetCommitValue  3: offset, leader epoch, metadata, commit time; 1 with an
//	                      expiry time; 4 with a topic id; 0 to 4 are read
//	GroupMetadataKey   2: group
//	GroupMetadataValue 3: the group with its members; 0 to 4 are read
const (
	offsetKeyVersion  = 1
	groupKeyVersion   = 2
	groupValueVersion = 3
	maxValueVersion   = 4
)

// PartitionFor is the partition of __consumer_offsets that holds a group: the
// hash of Java's String, as Kafka computes it. Partitions is positive.
func PartitionFor(groupID string, partitions int32) int32 {
	var h int32
	for _, u := range utf16.Encode([]rune(groupID)) {
		h = 31*h + int32(u)
	}
	if h == math.MinInt32 {
		h = 0
	}
	return max(h, -h) % partitions
}

func groupKey(id string) []byte {
	k := kmsg.GroupMetadataKey{Version: groupKeyVersion, Group: id}
	return k.AppendTo(make([]byte, 0, 4+len(id)))
}

// offsetRecord is a committed offset, or with nil its removal.
func offsetRecord(groupID string, k key, o *offset) Record {
	kk := kmsg.OffsetCommitKey{Version: offsetKeyVersion, Group: groupID, Topic: k.topic, Partition: k.partition}
	r := Record{Key: kk.AppendTo(make([]byte, 0, 10+len(groupID)+len(k.topic)))}
	if o == nil {
		return r
	}
	v := kmsg.OffsetCommitValue{Version: 3, Offset: o.offset, LeaderEpoch: o.epoch, Metadata: o.metadata, CommitTimestamp: o.commit}
	switch {
	case o.expire >= 0:
		v.Version, v.ExpireTimestamp = 1, o.expire
	case o.topicID != TopicID{}:
		v.Version, v.TopicID = 4, o.topicID
	}
	r.Value = v.AppendTo(make([]byte, 0, 48+len(o.metadata)))
	return r
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// record is the group with its members. The assignments are given, or those
// that the members have.
func (g *group) record(assignments map[string][]byte) Record {
	v := kmsg.GroupMetadataValue{Version: groupValueVersion, ProtocolType: g.protocolType, Generation: g.generation,
		Protocol: nullable(g.protocol), Leader: nullable(g.leader), CurrentStateTimestamp: -1}
	if !g.since.IsZero() {
		v.CurrentStateTimestamp = g.since.UnixMilli()
	}
	v.Members = make([]kmsg.GroupMetadataValueMember, 0, len(g.members))
	for m := g.first; m != nil; m = m.next {
		a := m.assignment
		if assignments != nil {
			a = assignments[m.id]
		}
		v.Members = append(v.Members, kmsg.GroupMetadataValueMember{
			MemberID: m.id, InstanceID: nullable(m.instance), ClientID: m.clientID, ClientHost: m.clientHost,
			RebalanceTimeoutMillis: millis(m.rebalance), SessionTimeoutMillis: millis(m.session),
			Subscription: m.metadata(g.protocol), Assignment: a})
	}
	return Record{Key: groupKey(g.id), Value: v.AppendTo(nil)}
}

func millis(d time.Duration) int32 {
	return int32(min(d.Milliseconds(), math.MaxInt32))
}

// Apply takes over a record of the log; a nil value is a tombstone. Records
// come in the order of the log, before Loaded. Errors are ErrUnknownRecord and
// ErrCorruptRecord, and change nothing. It keeps no reference to its arguments.
func (c *Coordinator) Apply(key, value []byte) error {
	if len(key) < 2 {
		return fmt.Errorf("read key: %w", ErrCorruptRecord)
	}
	switch version := int16(binary.BigEndian.Uint16(key)); version {
	case 0, offsetKeyVersion:
		return c.applyOffset(key, value)
	case groupKeyVersion:
		return c.applyGroup(key, value)
	default:
		return fmt.Errorf("read key version %d: %w", version, ErrUnknownRecord)
	}
}

// checkVersion refuses values of versions that this package does not know.
func checkVersion(value []byte) error {
	if len(value) < 2 {
		return fmt.Errorf("read value: %w", ErrCorruptRecord)
	}
	if v := int16(binary.BigEndian.Uint16(value)); v < 0 || v > maxValueVersion {
		return fmt.Errorf("read value version %d: %w", v, ErrUnknownRecord)
	}
	return nil
}

func (c *Coordinator) applyOffset(key, value []byte) error {
	var k kmsg.OffsetCommitKey
	if err := k.UnsafeReadFrom(key); err != nil {
		return fmt.Errorf("read offset key: %w: %w", ErrCorruptRecord, err)
	}
	g := c.groups[k.Group]
	if value == nil {
		if g != nil {
			g.removeOffset(k.Topic, k.Partition)
		}
		return nil
	}
	if err := checkVersion(value); err != nil {
		return err
	}
	var v kmsg.OffsetCommitValue
	if err := v.UnsafeReadFrom(value); err != nil {
		return fmt.Errorf("read offset: %w: %w", ErrCorruptRecord, err)
	}
	o := offset{offset: v.Offset, commit: v.CommitTimestamp, expire: -1, epoch: -1,
		topicID: v.TopicID, metadata: strings.Clone(v.Metadata)}
	if v.Version >= 3 {
		o.epoch = v.LeaderEpoch
	}
	if v.Version == 1 && v.ExpireTimestamp >= 0 {
		o.expire = v.ExpireTimestamp
	}
	if g == nil {
		g = newGroup(strings.Clone(k.Group))
		c.groups[g.id] = g
	}
	topic := k.Topic
	if g.offsets[topic] == nil {
		topic = strings.Clone(topic) // the map keeps it
	}
	g.setOffset(topic, k.Partition, o)
	return nil
}

func (c *Coordinator) applyGroup(key, value []byte) error {
	var k kmsg.GroupMetadataKey
	if err := k.ReadFrom(key); err != nil {
		return fmt.Errorf("read group key: %w: %w", ErrCorruptRecord, err)
	}
	old := c.groups[k.Group]
	if value == nil {
		if old != nil {
			c.forget(old)
			if len(old.offsets) > 0 { // what is left is a simple consumer's
				g := newGroup(k.Group)
				g.offsets = old.offsets
				c.groups[g.id] = g
			}
		}
		return nil
	}
	if err := checkVersion(value); err != nil {
		return err
	}
	var v kmsg.GroupMetadataValue
	if err := checkGroupValue(value); err != nil {
		return err
	}
	if err := v.ReadFrom(value); err != nil {
		return fmt.Errorf("read group: %w: %w", ErrCorruptRecord, err)
	}
	g := newGroup(k.Group)
	if err := g.load(&v); err != nil {
		return err
	}
	if old != nil {
		g.offsets = old.offsets
		c.forget(old)
	}
	c.groups[g.id] = g
	return nil
}

// load fills a new group from its record.
func (g *group) load(v *kmsg.GroupMetadataValue) error {
	g.stored = true
	g.generation, g.protocolType = v.Generation, v.ProtocolType
	if v.Protocol != nil {
		g.protocol = *v.Protocol
	}
	if v.Version >= 2 && v.CurrentStateTimestamp >= 0 {
		g.since = time.UnixMilli(v.CurrentStateTimestamp)
	}
	for i := range v.Members {
		r := &v.Members[i]
		m := &member{id: r.MemberID, clientID: r.ClientID, clientHost: r.ClientHost, assignment: bytes.Clone(r.Assignment),
			session:   time.Duration(r.SessionTimeoutMillis) * time.Millisecond,
			rebalance: time.Duration(r.RebalanceTimeoutMillis) * time.Millisecond,
			protocols: []Protocol{{g.protocol, bytes.Clone(r.Subscription)}}}
		if v.Version < 1 || r.RebalanceTimeoutMillis < 0 {
			m.rebalance = m.session
		}
		if r.InstanceID != nil {
			m.instance = *r.InstanceID
		}
		if g.members[m.id] != nil || m.instance != "" && g.statics[m.instance] != nil {
			return fmt.Errorf("read group: member %q twice: %w", m.id, ErrCorruptRecord)
		}
		g.add(m)
	}
	if len(g.members) > 0 {
		g.state = Stable
		if v.Leader != nil && g.members[*v.Leader] != nil {
			g.leader = *v.Leader
		}
	}
	g.subscribe()
	return nil
}
