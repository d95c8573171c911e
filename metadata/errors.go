// Package metadata is what the cluster knows about itself: its id, nodes,
// topics and their configs, producer ids, and the index of tiered segments.
//
// The bucket is the authority: cluster id, topics, claims of node ids and
// producer ids, and log starts are create-only objects under meta/, written
// first. The key-value store (package metadata/kv) is what everyone reads; what
// it lacks is completed from the bucket when a Store is opened. The formats of
// both are in docs/format/meta.md.
package metadata

import "errors"

// Errors that callers tell apart with errors.Is. Texts that wrap them are meant
// for the client: they name the key or topic, the value and what is allowed.
var (
	ErrUnknownTopic       = errors.New("unknown topic")
	ErrTopicExists        = errors.New("topic already exists")
	ErrInvalidTopic       = errors.New("invalid topic name")
	ErrInvalidPartitions  = errors.New("invalid number of partitions")
	ErrInvalidReplication = errors.New("invalid replication factor")
	ErrInvalidConfig      = errors.New("invalid config")
	ErrInvalidRequest     = errors.New("invalid request")
	ErrPolicy             = errors.New("policy violation")
	// ErrUnavailable: the bucket or the key-value store can't be reached, or
	// the outcome is not known. Nothing contradicts trying again.
	ErrUnavailable = errors.New("metadata unavailable")
	// ErrFenced: a greater leader epoch has written to the partition.
	ErrFenced = errors.New("leader epoch is fenced")
	// ErrForeignBucket: bucket, key-value store and data directory do not
	// belong together. The text says what to do.
	ErrForeignBucket = errors.New("bucket belongs to another cluster or metadata store")
	// ErrVersion: an object or row has a format version unknown to this program.
	ErrVersion = errors.New("unknown format version")
	// ErrDamaged: an object or row can't be what this program wrote. It names
	// the object; nothing is guessed.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrNodeID: the node id asked for contradicts the data directory's.
	ErrNodeID = errors.New("wrong node id")
	// ErrUnknownNode: no agent is registered under the node id.
	ErrUnknownNode = errors.New("unknown node")
)
