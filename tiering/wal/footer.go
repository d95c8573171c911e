// Package wal is the write-ahead stream of class object: one stream of
// create-only objects per incarnation of an agent, wal/<incarnation>/<seq>, each
// with the batches of many partitions and a footer that lists them. An
// append is durable when its object and all before it are in the bucket.
//
// The package also has what others do with a stream: read its footers, fold
// them into the state of its partitions, and seal it, which ends it for ever.
// docs/protocol.md has the rules, docs/format/wal-object.md the bytes.
package wal

import (
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Batch is a footer's entry of one record batch: what an heir needs to know
// of it without reading it.
type Batch struct {
	TP            ids.TopicPartition
	Epoch         int32 // leader epoch
	Base, Last    int64 // offsets
	Pos           int64 // of its first byte in the object
	Length        int64 // in bytes
	MaxTimestamp  int64
	ProducerID    int64 // -1: none
	ProducerEpoch int16
	BaseSequence  int32
	Attributes    int16 // of the batch: codec, timestamp type, transactional, control
}

// batchOf fills in what the footer has of a stamped batch.
func batchOf(tp ids.TopicPartition, h *batch.Header) Batch {
	return Batch{TP: tp, Epoch: h.LeaderEpoch, Base: h.BaseOffset, Last: h.LastOffset(), Length: int64(h.Size()),
		MaxTimestamp: h.MaxTimestamp, ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch,
		BaseSequence: h.BaseSequence, Attributes: h.Attributes}
}

// LogStart is a move of a partition's log start.
type LogStart struct {
	TP     ids.TopicPartition
	Epoch  int32
	Offset int64
}

// Acceptance makes the stream's incarnation the owner of a partition.
type Acceptance struct {
	TP            ids.TopicPartition
	Epoch         int32 // leader epoch from here on
	LogStart, End int64 // offsets that the owner begins with
	// Giver is the key of the object that gave the partition: a topic object, an
	// object with a release, a seal or a claim.
	Giver string
	// Older says where batches lie that are not tiered yet.
	Older []OlderRange
	// Disk, when not zero, has the partition's log: it is of class local, its batches never
	// enter the stream, and only a later start on this disk goes on with it.
	Disk ids.DiskID
}

// OlderRange says that the partition's batches of [Base, End) that are not
// tiered are listed in the objects From to To of another stream.
type OlderRange struct {
	Stream    ids.Incarnation
	From, To  uint64
	Base, End int64
}

// Release gives a partition to another incarnation. It says all that the receiver
// needs to know, so that nothing depends on what is trimmed when it is read.
type Release struct {
	TP    ids.TopicPartition
	Epoch int32 // that the receiver will have
	End   int64 // offset at which the receiver goes on
	To    ids.Incarnation
	// LogStart, and Older, which names the releasing stream too, are filled in by the stream.
	LogStart int64
	Older    []OlderRange
}

// Held is a partition that the stream's incarnation owns.
type Held struct {
	TP            ids.TopicPartition
	Epoch         int32
	LogStart, End int64
	Giver         string
	Older         []OlderRange
	Disk          ids.DiskID
}

// Checkpoint is the state of the stream's partitions after its object: objects
// before it are needed for their batches alone.
type Checkpoint struct {
	Held     []Held
	Released []Release // and not accepted again since
}

// Footer is what an object of a stream says about itself.
type Footer struct {
	Cluster [16]byte
	Stream  ids.Incarnation
	Seq     uint64
	// Nonce of the writing process: a put whose answer was lost is told from
	// somebody else's by it.
	Nonce     [16]byte
	CreatedMs int64
	// Pos and End bound the positions that the object has in its stream, as the
	// stream counts them; see contract.Pos.
	Pos, End uint64
	// CheckpointAt is the number of the newest object with a checkpoint, which
	// may be this one.
	CheckpointAt uint64
	Batches      []Batch
	LogStarts    []LogStart
	Acceptances  []Acceptance
	Releases     []Release
	Checkpoint   *Checkpoint

	// Seal, when not nil, says that the object is a seal: the stream ends
	// before it. Then there is nothing of the above but the first five.
	Seal *Seal
}

// Seal ends a stream and passes its partitions on.
type Seal struct {
	By    ids.Incarnation
	Heirs []Heir
}

// Heir is what becomes of one partition of a sealed stream.
type Heir struct {
	TP    ids.TopicPartition
	Epoch int32 // that the new owner will have
	To    ids.Incarnation
	// Released: the incarnation had given it away itself.
	Released bool
	// Giver, when not "", is the object that had given the partition to the
	// incarnation, which had not accepted it yet.
	Giver string
	// Disk, when not zero, keeps the partition: there is no heir, To is "". End is the offset that
	// its log had when the incarnation accepted it; the disk knows what came then.
	Disk ids.DiskID
	End  int64
}
