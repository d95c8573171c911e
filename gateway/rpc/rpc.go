// Package rpc is the agents' own protocol, gRPC between the agents of a cluster: what each has and sees, and
// hints about partitions that move. Nothing that is acknowledged depends on it: whoever does not answer is shown as
// such, and a move without it takes the way over the metadata store.
package rpc

import (
	"context"
	"errors"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// State is what an agent tells of itself, and of the others as it sees them.
type State struct {
	Node        int32           `json:"node"`
	Incarnation ids.Incarnation `json:"incarnation"`
	Epoch       int32           `json:"epoch"` // starts of the node
	Version     string          `json:"version"`
	Cluster     string          `json:"cluster"`
	Draining    bool            `json:"draining"`
	// LeaseLive tells that the others can't take it for dead.
	LeaseLive  bool              `json:"lease_live"`
	Partitions int32             `json:"partitions"` // that it leads
	Agents     []Agent           `json:"agents"`     // itself among them
	Stream     Stream            `json:"stream"`
	Sealed     []ids.Incarnation `json:"sealed"`   // whose streams are known to be sealed
	Releases   []Release         `json:"releases"` // not known to be taken over
}

// Agent is an agent as another one sees it.
type Agent struct {
	Node        int32           `json:"node"`
	Incarnation ids.Incarnation `json:"incarnation"`
	Epoch       int32           `json:"epoch"`
	Host        string          `json:"host"`
	Port        int32           `json:"port"`
	Rack        string          `json:"rack"`
	Reader      bool            `json:"reader"`
	RPC         string          `json:"rpc"` // HOST:PORT; "": none
	StartedMs   int64           `json:"started_ms"`
	Lease       string          `json:"lease"`              // by the metadata store's word
	UnchangedMs int64           `json:"lease_unchanged_ms"` // -1: not watched
	Leads       int32           `json:"leads"`              // partitions
}

// Leases of agents.
const (
	LeaseHeld    = "held"
	LeaseRunOut  = "run out"
	LeaseUnknown = "unknown" // the metadata store could not be asked
)

// Stream is an agent's write-ahead stream.
type Stream struct {
	Next     uint64 `json:"next_object"`
	Present  int32  `json:"objects"` // in the bucket
	Needed   int32  `json:"objects_needed"`
	Backlog  int64  `json:"backlog_bytes"` // appended and not durable
	Used     int64  `json:"used_bytes"`    // appended and not trimmed
	Capacity int64  `json:"capacity_bytes"`
	Error    string `json:"error,omitempty"`
}

// Release is an object of a stream that gives partitions away.
type Release struct {
	Incarnation ids.Incarnation `json:"incarnation"`
	Object      uint64          `json:"object"`
}

// Partition is one that an agent leads.
type Partition struct {
	Topic         string      `json:"topic"`
	TopicID       ids.TopicID `json:"-"`
	Partition     int32       `json:"partition"`
	Epoch         int32       `json:"epoch"`
	LogStart      int64       `json:"log_start_offset"`
	HighWatermark int64       `json:"high_watermark"`
	TieredEnd     int64       `json:"tiered_end_offset"`
	LocalBytes    int64       `json:"local_bytes"`
	BucketBytes   int64       `json:"bucket_bytes"`
}

// Source tells what this agent is and has.
type Source interface {
	State(ctx context.Context) (State, error)
	// Partitions lists what this agent leads of a topic, "" for all; metadata.ErrUnknownTopic.
	Partitions(ctx context.Context, topic string) ([]Partition, error)
	// Put returns when an object that was put into this agent's stream for it is durable.
	Put(ctx context.Context) error
}

// Receiver takes partitions over. Manager of services/lead is one.
type Receiver interface {
	Prepare(ctx context.Context, c lead.Coming) error
	Released(ctx context.Context, r metadata.Released) error
}

var _ Receiver = (*lead.Manager)(nil)

// Bounds of messages and calls.
const (
	// maxMessage is in bytes; a Prepare of maxPartitions partitions has less than half a million.
	maxMessage = 16 << 20
	// maxPartitions bounds those of one Prepare, and those of one answer of Partitions.
	maxPartitions  = 10_000
	pagePartitions = 1000
	// maxStreams bounds the streams of one Prepare.
	maxStreams = 1000
	// maxCalls bounds the calls at work of one connection.
	maxCalls = 64
	// callTime bounds a call whose caller sets no bound.
	callTime = 30 * time.Second
)

// ErrUnreachable: an agent has no address, or does not answer there.
var ErrUnreachable = errors.New("rpc: agent does not answer")
