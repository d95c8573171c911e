package group

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Limits of what clients may make a coordinator hold. The record formats give
// the first; the others keep one client from filling the memory of a node.
const (
	// MaxString is the longest id or name, in bytes: the records have 16-bit
	// lengths.
	MaxString = math.MaxInt16
	// MaxTopicName is the longest topic name, in bytes.
	MaxTopicName = 249
	// MaxProtocols is how many protocols a member may offer.
	MaxProtocols = 64
	// maxReason is how much of a rebalance's reason is kept, in bytes.
	maxReason = 255
)

// Config of a Coordinator. Zero values mean the defaults; NewID is required.
type Config struct {
	// NewID returns a new random id; member ids end with it. It must never
	// return the same id twice.
	NewID func() string

	InitialRebalanceDelay time.Duration // group.initial.rebalance.delay.ms; 0 means none
	MinSessionTimeout     time.Duration // group.min.session.timeout.ms, default 6 s
	MaxSessionTimeout     time.Duration // group.max.session.timeout.ms, default 30 min
	NewMemberJoinTimeout  time.Duration // how long a member's first join may wait, default 5 min
	MaxSize               int           // group.max.size, default 20,000 members
	MaxGroups             int           // groups of one coordinator, default 100,000

	MaxMemberBytes int // metadata of all protocols of one member, default 1 MiB
	MaxGroupBytes  int // metadata of all members of a group, default 64 MiB
	MaxRecordBytes int // a group's record with all assignments, default 16 MiB

	MaxOffsetMetadata int           // offset.metadata.max.bytes, default 4,096
	OffsetRetention   time.Duration // offsets.retention.minutes, default 7 days
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (c *Config) setDefaults() error {
	if c.NewID == nil {
		return errors.New("create group coordinator: NewID is required")
	}
	orDefault(&c.MinSessionTimeout, 6*time.Second)
	orDefault(&c.MaxSessionTimeout, 30*time.Minute)
	orDefault(&c.NewMemberJoinTimeout, 5*time.Minute)
	orDefault(&c.MaxSize, 20_000)
	orDefault(&c.MaxGroups, 100_000)
	orDefault(&c.MaxMemberBytes, 1<<20)
	orDefault(&c.MaxGroupBytes, 64<<20)
	orDefault(&c.MaxRecordBytes, 16<<20)
	orDefault(&c.MaxOffsetMetadata, 4096)
	orDefault(&c.OffsetRetention, 7*24*time.Hour)
	if c.MinSessionTimeout < 0 || c.MaxSessionTimeout < c.MinSessionTimeout {
		return fmt.Errorf("create group coordinator: session timeouts %v to %v", c.MinSessionTimeout, c.MaxSessionTimeout)
	}
	if c.InitialRebalanceDelay < 0 || c.MaxSize < 0 || c.MaxGroups < 0 || c.OffsetRetention < 0 {
		return errors.New("create group coordinator: negative setting")
	}
	return nil
}
