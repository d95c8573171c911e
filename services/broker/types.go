// Package broker serves partitions: it joins storage, tiering and metadata
// into the operations that the gateways need. It knows nothing of wire formats.
package broker

import (
	"errors"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Errors that gateways tell apart with errors.Is, besides those of the
// packages storage/batch and metadata.
var (
	ErrUnknownTopic             = metadata.ErrUnknownTopic
	ErrUnknownPartition         = errors.New("broker: unknown partition")
	ErrNotLeader                = errors.New("broker: not the leader of the partition")
	ErrFencedEpoch              = errors.New("broker: leader epoch is older than the partition's")
	ErrUnknownEpoch             = errors.New("broker: leader epoch is newer than the partition's")
	ErrOffsetOutOfRange         = errors.New("broker: offset out of range")
	ErrOutOfOrderSequence       = errors.New("broker: out of order sequence number")
	ErrInvalidProducerEpoch     = errors.New("broker: producer was fenced by a newer epoch")
	ErrUnknownProducer          = errors.New("broker: unknown producer id")
	ErrDuplicateSequence        = errors.New("broker: duplicate sequence number")
	ErrMessageTooLarge          = errors.New("broker: message too large")
	ErrInvalidTimestamp         = errors.New("broker: invalid timestamp")
	ErrStorage                  = errors.New("broker: storage failed")
	ErrThrottled                = errors.New("broker: no room in time, try again")
	ErrGroupsLoading            = errors.New("broker: consumer groups are being loaded")
	ErrClosed                   = errors.New("broker: shutting down")
	ErrTransactionalUnsupported = errors.New("broker: transactions are not supported")
)

// Node is an agent as clients see it.
type Node struct {
	ID   int32
	Host string
	Port int32
	Rack string // "" for none
	// Reader tells that it leads no partitions, and serves what is tiered of all.
	Reader bool
}

// Topic is an immutable snapshot of a topic.
type Topic struct {
	Name       string
	ID         ids.TopicID
	Partitions int32
	Internal   bool
	Configs    map[string]string // those the topic sets itself
	Config     metadata.TopicConfig
}

// Produced is the outcome of a Partition.Produce.
type Produced struct {
	BaseOffset    int64
	LogAppendTime int64 // ms since 1970; -1 with CreateTime
	LogStart      int64
	Err           error
}

// ReadOptions say what a Partition.Read wants.
type ReadOptions struct {
	Offset        int64
	MaxBytes      int
	MinOneBatch   bool // the first batch may be larger than MaxBytes
	ReadCommitted bool
	// CurrentEpoch is the leader epoch the client knows, -1 for none.
	CurrentEpoch int32
	// LastFetchedEpoch is the epoch of the client's last record, -1 for none.
	LastFetchedEpoch int32
	// CacheOnly leaves tiered data alone.
	CacheOnly bool
}

// ReadResult is the outcome of a Partition.Read. Release, when not nil, must be
// called once Data was used.
type ReadResult struct {
	HighWatermark, LastStable, LogStart int64

	Data      [][]byte
	Aborted   []AbortedTxn
	Diverging *EpochEnd
	Release   func()
	// Tiered says that CacheOnly kept the read from data that is there.
	Tiered bool
	// Indexed says of data kept from by CacheOnly that other agents can serve it.
	Indexed bool
	Err     error
}

// AbortedTxn is an aborted transaction in a read_committed result.
type AbortedTxn struct{ ProducerID, FirstOffset int64 }

// EpochEnd is where a leader epoch ends.
type EpochEnd struct {
	Epoch     int32
	EndOffset int64
}

// OffsetAt is an offset found by time; -1 for none.
type OffsetAt struct {
	Offset, Timestamp int64
	LeaderEpoch       int32
}

// LogDir is a place where partitions' bytes are: the SSD or the bucket.
type LogDir struct {
	Path          string
	Total, Usable int64 // bytes; -1 unknown
	Partitions    map[ids.TopicPartition]int64
}

// Watcher is told when a watched partition has news. Wake may be called with
// locks held: it must not block, nor call the partition.
type Watcher = storage.Watcher
