// Package ids holds the identifiers that every layer shares: topic ids,
// topic-partitions and agent incarnations. Each has one printed form, which
// is the one used in file names, bucket keys and metadata keys.
package ids

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/oklog/ulid/v2"
)

// TopicIDLen is the length in characters of a printed TopicID.
const TopicIDLen = 22

// TopicID is Kafka's 128-bit topic id (KIP-516). The zero value means "none".
type TopicID [16]byte

// NewTopicID returns a random id. As in Kafka, its printed form never starts
// with '-', so that it can be an argument of a command.
func NewTopicID() TopicID {
	for {
		var id TopicID
		rand.Read(id[:]) // never fails (crypto/rand since Go 1.24)
		if !id.IsZero() && id.String()[0] != '-' {
			return id
		}
	}
}

// IsZero reports whether the id is Kafka's "no id".
func (t TopicID) IsZero() bool { return t == TopicID{} }

// String returns the id as Kafka prints it: 22 characters of unpadded base64url.
func (t TopicID) String() string { return base64.RawURLEncoding.EncodeToString(t[:]) }

// ParseTopicID parses the form of String. Only the canonical form is accepted,
// so that one topic never has two keys.
func ParseTopicID(s string) (TopicID, error) {
	var id TopicID
	if len(s) != TopicIDLen {
		return id, fmt.Errorf("parse topic id %q: %d characters, want %d", s, len(s), TopicIDLen)
	}
	if _, err := base64.RawURLEncoding.Strict().Decode(id[:], []byte(s)); err != nil {
		return TopicID{}, fmt.Errorf("parse topic id %q: %w", s, err)
	}
	return id, nil
}

// DiskID is the random identity of a data directory. The zero value means "none".
type DiskID [16]byte

// IsZero reports whether the id is none.
func (d DiskID) IsZero() bool { return d == DiskID{} }

// String returns 32 hex digits.
func (d DiskID) String() string { return hex.EncodeToString(d[:]) }

// ParseDiskID parses the form of String.
func ParseDiskID(s string) (DiskID, error) {
	var id DiskID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return id, fmt.Errorf("parse disk id %.100q: want 32 hex digits, small letters", s)
	}
	copy(id[:], b)
	return id, nil
}

// TopicPartition names one partition of one topic for ever: a topic that is
// deleted and created again under the same name has another id.
type TopicPartition struct {
	Topic     TopicID
	Partition int32
}

// String returns "<topic-id>-<partition>", the form of directory names.
func (tp TopicPartition) String() string {
	return tp.Topic.String() + "-" + strconv.Itoa(int(tp.Partition))
}

// ParseTopicPartition parses the form of String.
func ParseTopicPartition(s string) (TopicPartition, error) {
	if len(s) < TopicIDLen+2 || s[TopicIDLen] != '-' {
		return TopicPartition{}, fmt.Errorf("parse partition name %q: want <topic-id>-<partition>", s)
	}
	id, err := ParseTopicID(s[:TopicIDLen])
	if err != nil {
		return TopicPartition{}, err
	}
	p, err := ParsePartition(s[TopicIDLen+1:])
	if err != nil {
		return TopicPartition{}, fmt.Errorf("parse partition name %q: %w", s, err)
	}
	return TopicPartition{Topic: id, Partition: p}, nil
}

// ParsePartition parses a canonical non-negative decimal partition number.
func ParsePartition(s string) (int32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("partition number %q: want 0 to %d", s, 1<<31-1)
	}
	return int32(n), nil
}

// Incarnation is one start of an agent, a ULID: 26 characters, sorted by time.
type Incarnation string

// NewIncarnation returns a fresh incarnation.
func NewIncarnation() Incarnation { return Incarnation(ulid.Make().String()) }

// ParseIncarnation checks that s is a canonical ULID.
func ParseIncarnation(s string) (Incarnation, error) {
	u, err := ulid.ParseStrict(s)
	if err != nil || u.String() != strings.ToUpper(s) || s != strings.ToUpper(s) {
		return "", fmt.Errorf("parse incarnation %q: not a ULID", s)
	}
	return Incarnation(s), nil
}
