// Package storage is the log of one agent: a Store with one Log per partition.
//
// One write-ahead stream (storage/wal) decides durability for all partitions;
// Kafka-identical segment files are written behind it. A batch goes through
// these places: the stream's memory, where tail reads find it (Append); the
// stream's file, which makes it durable and moves the high watermark; the
// segment file, in whole 4 KiB blocks and pieces of 1 MiB and more (flush); and,
// when a quiet partition would hold the ring, a spill file shared by all such
// partitions (trim). A large batch goes to its segment file at once, and the stream
// only refers to it (direct), to a file of a removed segment if there is one
// (recycle). A closed segment is a .log and an .idx file, which
// together are the object that tiering uploads.
//
// Lock order: Log.appendMu, Log.flushMu, Log.mu, Store.mu, then the locks of
// the stream, pool and files. No I/O happens under Log.mu or Store.mu.
package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// Errors. Wrapped with detail; compare with errors.Is.
var (
	// ErrFailed: the disk failed a write or a sync; the agent must stop leading.
	ErrFailed = errors.New("storage: disk failed")
	// ErrDamaged: bytes on disk are not what was written.
	ErrDamaged = errors.New("storage: damaged")
	// ErrClosed: the store or the log is closed or deleted.
	ErrClosed = errors.New("storage: closed")
	// ErrBusy: no room was freed before the caller's deadline; nothing was appended.
	ErrBusy = errors.New("storage: no room, try again")
	// ErrOutOfRange: below the log start or beyond the end.
	ErrOutOfRange = errors.New("storage: offset out of range")
	// ErrNotLocal: the offset is no longer on this disk; it is in the bucket.
	ErrNotLocal = errors.New("storage: offset is not on local disk")
	// ErrTooLarge: the batch is larger than a segment or the stream can take.
	ErrTooLarge = errors.New("storage: batch too large")

	// ErrOutOfOrderSequence: a gap in an idempotent producer's sequence.
	ErrOutOfOrderSequence = errors.New("storage: out of order sequence number")
	// ErrInvalidProducerEpoch: the producer was fenced by a newer epoch.
	ErrInvalidProducerEpoch = errors.New("storage: invalid producer epoch")
	// ErrDuplicateSequence: a duplicate older than the five batches remembered.
	ErrDuplicateSequence = errors.New("storage: duplicate sequence number")
)

// Defaults of Options.
const (
	DefaultWALSize   = 512 << 20
	DefaultTailBytes = 256 << 20
	DefaultReadBytes = 128 << 20
	DefaultMaxFiles  = 512
	// DefaultDirectBytes is that of Options.DirectBytes.
	DefaultDirectBytes = 256 << 10
)

// Options of a Store; zero values mean the defaults above. FS and Dir are required.
type Options struct {
	FS  vfs.FS
	Dir string
	// DiskID as remembered by the disk; see OpenDisk.
	DiskID [16]byte
	// WALSize of a new ring, in bytes.
	WALSize int64
	// Prefill of the ring in its first lap, in bytes; see ring.Options.
	Prefill int64
	// TailBytes bounds the memory tail of all partitions.
	TailBytes int64
	// DirectBytes is the size from which a batch is written to its segment file
	// at once, with a reference in the ring; at least 8 KiB. Negative: none is.
	DirectBytes int64
	// ReadBytes bounds the buffers of reads from disk.
	ReadBytes int64
	// MaxFiles bounds the segment files kept open.
	MaxFiles int
	// DiskBudget bounds the bytes of ring, segments and spill files; appends
	// wait when they would exceed it. Indexes and spill files are counted when
	// they are written, so they may exceed it a little. 0 means no bound.
	DiskBudget int64
	// ProducerExpiry is how long an idle producer id is remembered; 0 means
	// Kafka's 24 h (producer.id.expiration.ms).
	ProducerExpiry time.Duration
	// Remote makes the store one of class object.
	Remote RemoteOptions
	Logger *slog.Logger
	Now    func() time.Time
	// OnFailure is called once, with the error, when the disk has failed.
	OnFailure func(error)
	// OnClosed is called, without locks, after a segment was closed.
	OnClosed func(tp ids.TopicPartition)
}

func (o *Options) setDefaults() error {
	if o.FS == nil || o.Dir == "" {
		return fmt.Errorf("storage: FS and Dir are required")
	}
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.WALSize, DefaultWALSize)
	def(&o.TailBytes, DefaultTailBytes)
	def(&o.ReadBytes, DefaultReadBytes)
	def(&o.DirectBytes, DefaultDirectBytes)
	if o.DirectBytes < 0 {
		o.DirectBytes = math.MaxInt64
	}
	o.DirectBytes = max(o.DirectBytes, minDirect)
	o.Remote.setDefaults()
	if o.MaxFiles == 0 {
		o.MaxFiles = DefaultMaxFiles
	}
	if o.ProducerExpiry == 0 {
		o.ProducerExpiry = 24 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// LogConfig is what a Log needs of its topic's configuration; zero values mean
// Cirrolog's defaults.
type LogConfig struct {
	SegmentBytes  int64         // segment.bytes; 0 means 64 MiB
	SegmentAge    time.Duration // segment.ms; 0 means 7 days
	IndexInterval int           // index.interval.bytes; 0 means 4096
}

func (c LogConfig) withDefaults() LogConfig {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.SegmentAge == 0 {
		c.SegmentAge = 7 * 24 * time.Hour
	}
	if c.IndexInterval == 0 {
		c.IndexInterval = 4096
	}
	return c
}
