package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// DiskRecord is meta/disk/<disk-id>/<n>: a step in the life of a disk that has partitions of
// class local. Each start on the disk that leads some makes one, so of two who would go on one
// decides; the last one may say that the disk is lost.
type DiskRecord struct {
	Disk ids.DiskID
	N    int64 // from 1
	// Incarnation leads the disk's partitions from here on; "": the disk is abandoned for ever.
	Incarnation ids.Incarnation
	Node        int32
	AtMs        int64
	// Partitions are those that earlier starts on the disk have led: the incarnation may accept
	// them; those of an abandoned disk are given to To.
	Partitions []DiskPartition
}

// DiskPartition is a partition that a disk keeps, or that is given away because the disk is lost.
type DiskPartition struct {
	TP    ids.TopicPartition
	Epoch int32           // that the next owner will have
	End   int64           // offset that its log has at least
	Giver string          // key of the seal that says so
	To    ids.Incarnation // "" unless the disk is abandoned
}

// Abandoned tells that the disk is given up.
func (r *DiskRecord) Abandoned() bool { return r.Incarnation == "" }

// Key is the key of the record's object.
func (r *DiskRecord) Key() string { return numbered(diskObjects(r.Disk), r.N) }

// IsDiskObject tells whether a key of the bucket is that of a DiskRecord.
func IsDiskObject(key string) bool { return strings.HasPrefix(key, diskPrefix) }

const (
	diskPrefix      = "meta/disk/"
	abandonedPrefix = "abandoned/" // of rows
)

func diskObjects(d ids.DiskID) string { return diskPrefix + d.String() + "/" }

// diskObject is the content of an object.
type diskObject struct {
	Format      int             `json:"format"`
	Disk        string          `json:"disk"`
	N           int64           `json:"n"`
	Incarnation ids.Incarnation `json:"incarnation,omitempty"`
	Abandoned   bool            `json:"abandoned,omitempty"`
	Node        int32           `json:"node"`
	Partitions  []diskPartition `json:"partitions,omitempty"`
	AtMs        int64           `json:"at_ms"`
	By          ids.Incarnation `json:"by"`
	Nonce       string          `json:"nonce"`
}

type diskPartition struct {
	Topic     string          `json:"topic"`
	Partition int32           `json:"partition"`
	Epoch     int32           `json:"epoch"`
	End       int64           `json:"end"`
	Giver     string          `json:"giver"`
	To        ids.Incarnation `json:"to,omitempty"`
}

// Disk reads the newest record of a disk; nil: there is none.
func (s *Store) Disk(ctx context.Context, d ids.DiskID) (*DiskRecord, error) {
	key, err := s.last(ctx, diskObjects(d), "")
	if err != nil || key == "" {
		return nil, unavailable("look up disk "+d.String(), err)
	}
	r, err := s.ReadDisk(ctx, key)
	return r, unavailable("look up disk "+d.String(), err)
}

// ReadDisk reads the record of a key.
func (s *Store) ReadDisk(ctx context.Context, key string) (*DiskRecord, error) {
	d, n, err := parseDiskObject(key)
	if err != nil {
		return nil, err
	}
	body, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	r, err := decodeDisk(key, body)
	if err == nil && (r.Disk != d || r.N != n) {
		err = fmt.Errorf("%s: %w: it is record %d of disk %s", key, ErrDamaged, r.N, r.Disk)
	}
	return r, err
}

func parseDiskObject(key string) (d ids.DiskID, n int64, err error) {
	name, _, ok := strings.Cut(strings.TrimPrefix(key, diskPrefix), "/")
	if d, err = ids.ParseDiskID(name); !ok || !IsDiskObject(key) || err != nil {
		return d, 0, fmt.Errorf("%w: object %s: want %s<disk-id>/<n>", ErrDamaged, key, diskPrefix)
	}
	n, err = parseNumbered(diskObjects(d), key)
	return d, n, err
}

func decodeDisk(where string, b []byte) (*DiskRecord, error) {
	var o diskObject
	if err := decode(where, b, &o); err != nil {
		return nil, err
	}
	d, err := ids.ParseDiskID(o.Disk)
	if err != nil || o.N < 1 || (o.Incarnation == "") != o.Abandoned {
		return nil, fmt.Errorf("%s: %w: disk %q, number %d, incarnation %q", where, ErrDamaged, o.Disk, o.N, o.Incarnation)
	}
	r := &DiskRecord{Disk: d, N: o.N, Incarnation: o.Incarnation, Node: o.Node, AtMs: o.AtMs}
	for _, p := range o.Partitions {
		id, err := ids.ParseTopicID(p.Topic)
		if err != nil || p.Partition < 0 || p.Epoch < 0 || p.End < 0 || (p.To == "") == o.Abandoned {
			return nil, fmt.Errorf("%s: %w: partition %d of %q, epoch %d, end %d, to %q", where, ErrDamaged, p.Partition, p.Topic, p.Epoch, p.End, p.To)
		}
		r.Partitions = append(r.Partitions, DiskPartition{TP: ids.TopicPartition{Topic: id, Partition: p.Partition}, Epoch: p.Epoch, End: p.End, Giver: p.Giver, To: p.To})
	}
	return r, nil
}

// CreateDisk creates a record. won is false when another one has its number.
func (s *Store) CreateDisk(ctx context.Context, r *DiskRecord) (won bool, err error) {
	o := diskObject{Format: formatVersion, Disk: r.Disk.String(), N: r.N, Incarnation: r.Incarnation, Abandoned: r.Abandoned(), Node: r.Node,
		AtMs: s.nowMs(), By: s.opts.Incarnation, Nonce: string(ids.NewIncarnation())}
	for _, p := range r.Partitions {
		o.Partitions = append(o.Partitions, diskPartition{Topic: p.TP.Topic.String(), Partition: p.TP.Partition, Epoch: p.Epoch, End: p.End, Giver: p.Giver, To: p.To})
	}
	body, err := encode(o)
	if err == nil {
		won, _, err = s.create(ctx, r.Key(), body)
	}
	return won, unavailable("create "+r.Key(), err)
}

// Disks returns the newest record of every disk, by disk id.
func (s *Store) Disks(ctx context.Context) ([]DiskRecord, error) {
	newest, order := map[ids.DiskID]string{}, []ids.DiskID(nil)
	err := s.list(ctx, diskPrefix, "", func(o objstore.ObjectInfo) error {
		d, _, err := parseDiskObject(o.Key)
		if _, ok := newest[d]; !ok {
			order = append(order, d)
		}
		newest[d] = o.Key
		return err
	})
	out := make([]DiskRecord, 0, len(order))
	for _, d := range order {
		if err != nil {
			break
		}
		var r *DiskRecord
		if r, err = s.ReadDisk(ctx, newest[d]); err == nil {
			out = append(out, *r)
		}
	}
	return out, unavailable("list disks", err)
}

// abandonedRow is the row abandoned/<disk-id>: the newest record of the disk gives its partitions away.
type abandonedRow struct {
	Format int   `json:"format"`
	N      int64 `json:"n"`
	AtMs   int64 `json:"at_ms"`
}

// PublishAbandoned tells the others that a disk is abandoned, by record n.
func (s *Store) PublishAbandoned(ctx context.Context, d ids.DiskID, n int64) error {
	v, err := encode(abandonedRow{Format: formatVersion, N: n, AtMs: s.nowMs()})
	if err != nil {
		return err
	}
	err = s.put(ctx, kv.Op{Key: abandonedPrefix + d.String(), Value: v})
	if err == nil {
		s.noteAbandoned(d)
	}
	return unavailable("publish that disk "+d.String()+" is abandoned", err)
}

// AbandonedDisks lists the disks that are known to be abandoned.
func (s *Store) AbandonedDisks() []ids.DiskID {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	return slices.Collect(maps.Keys(s.abandoned))
}

// ReadAbandoned reads the rows of abandoned disks, so that AbandonedDisks lacks none there is now.
func (s *Store) ReadAbandoned(ctx context.Context) error {
	return unavailable("read abandoned disks", s.rows(ctx, abandonedPrefix, s.applyAbandoned))
}

func (s *Store) noteAbandoned(d ids.DiskID) {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	if s.abandoned == nil {
		s.abandoned = map[ids.DiskID]struct{}{}
	}
	s.abandoned[d] = struct{}{}
}

func (s *Store) applyAbandoned(it kv.Item) error {
	d, err := ids.ParseDiskID(strings.TrimPrefix(it.Key, abandonedPrefix))
	if err != nil {
		return errors.Join(fmt.Errorf("%w: row %s", ErrDamaged, it.Key), err)
	}
	if it.Value != nil {
		s.noteAbandoned(d)
	}
	return nil
}
