package wal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Claim passes on a partition that was given to an incarnation whose seal does not list
// it: the sealer had not seen the giving object. It is a create-only object beside that
// seal, so of all who find the partition without a leader one decides who leads it.
type Claim struct {
	Dead  ids.Incarnation // to whom the partition was given
	TP    ids.TopicPartition
	Epoch int32           // that the new owner will have: one more than was given
	To    ids.Incarnation // the new owner
	Giver string          // key of the object that gave the partition to Dead
	By    ids.Incarnation // who claims
}

// claimDir is the part of a stream's keys that claims have.
const claimDir = "claim/"

// ClaimKey is the key of the claim of a partition that was given to dead under the epoch before.
func ClaimKey(dead ids.Incarnation, tp ids.TopicPartition, epoch int32) string {
	return fmt.Sprintf("%s%s%s/%d/%d", streamPrefix(dead), claimDir, tp.Topic, tp.Partition, epoch)
}

// ParseClaimKey parses a key of ClaimKey; false: it is none.
func ParseClaimKey(key string) (dead ids.Incarnation, tp ids.TopicPartition, epoch int32, ok bool) {
	f := strings.Split(key, "/")
	if len(f) != 6 {
		return "", tp, 0, false
	}
	dead, err1 := ids.ParseIncarnation(f[1])
	topic, err2 := ids.ParseTopicID(f[3])
	p, err3 := strconv.ParseInt(f[4], 10, 32)
	e, err4 := strconv.ParseInt(f[5], 10, 32)
	tp, epoch = ids.TopicPartition{Topic: topic, Partition: int32(p)}, int32(e)
	if errors.Join(err1, err2, err3, err4) != nil || ClaimKey(dead, tp, epoch) != key {
		return "", ids.TopicPartition{}, 0, false
	}
	return dead, tp, epoch, true
}

// Key is the claim's key.
func (c *Claim) Key() string { return ClaimKey(c.Dead, c.TP, c.Epoch) }

// claimObject is the content of a claim.
type claimObject struct {
	Format    int             `json:"format"`
	Cluster   string          `json:"cluster"`
	Topic     string          `json:"topic"`
	Partition int32           `json:"partition"`
	Epoch     int32           `json:"epoch"`
	To        ids.Incarnation `json:"to"`
	Giver     string          `json:"giver"`
	By        ids.Incarnation `json:"by"`
	AtMs      int64           `json:"at_ms"`
	Nonce     string          `json:"nonce"` // of the writer
}

// PutClaim creates a claim, or reads the one that another has created first, which is
// returned then. made tells that it is this one.
func PutClaim(ctx context.Context, b objstore.Bucket, cluster [16]byte, c Claim) (_ *Claim, made bool, err error) {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	v, err := json.Marshal(claimObject{Format: formatVersion, Cluster: hex.EncodeToString(cluster[:]), Topic: c.TP.Topic.String(), Partition: c.TP.Partition,
		Epoch: c.Epoch, To: c.To, Giver: c.Giver, By: c.By, AtMs: time.Now().UnixMilli(), Nonce: hex.EncodeToString(nonce)})
	if err != nil {
		return nil, false, err
	}
	o := &body{}
	o.add(append(v, '\n'))
	_, err = objstore.PutCreateOnly(ctx, b, c.Key(), o, objstore.PutOptions{})
	switch {
	case err == nil:
		return &c, true, nil
	case !errors.Is(err, objstore.ErrPrecondition):
		return nil, false, err
	}
	other, err := ReadClaim(ctx, b, cluster, c.Key())
	return other, false, err
}

// ReadClaim reads a claim. objstore.ErrNotFound: there is none.
func ReadClaim(ctx context.Context, b objstore.Reader, cluster [16]byte, key string) (*Claim, error) {
	dead, tp, epoch, ok := ParseClaimKey(key)
	if !ok {
		return nil, fmt.Errorf("%w: key %q is none of a claim", contract.ErrDamaged, key)
	}
	v, err := readSmall(ctx, b, key)
	if err != nil {
		return nil, err
	}
	var o claimObject
	if err := json.Unmarshal(v, &o); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", contract.ErrDamaged, key, err)
	}
	_, err = ids.ParseIncarnation(string(o.To))
	switch {
	case o.Format != formatVersion:
		return nil, fmt.Errorf("%s: %w %d, this program knows %d", key, contract.ErrVersion, o.Format, formatVersion)
	case o.Cluster != hex.EncodeToString(cluster[:]):
		return nil, fmt.Errorf("%w: %s is of another cluster", contract.ErrForeign, key)
	case err != nil || o.Topic != tp.Topic.String() || o.Partition != tp.Partition || o.Epoch != epoch || o.Giver == "":
		return nil, fmt.Errorf("%w: %s: it claims partition %d of %s, epoch %d, given by %q, for %q", contract.ErrDamaged, key, o.Partition, o.Topic, o.Epoch, o.Giver, o.To)
	}
	return &Claim{Dead: dead, TP: tp, Epoch: epoch, To: o.To, Giver: o.Giver, By: o.By}, nil
}

// readSmall reads an object of at most 1 KiB.
func readSmall(ctx context.Context, b objstore.Reader, key string) ([]byte, error) {
	var size int64
	err := retry(ctx, func() error {
		o, err := b.Head(ctx, key)
		size = o.Size
		return err
	})
	if err != nil {
		return nil, err
	}
	if size > 1<<10 {
		return nil, fmt.Errorf("%w: %s has %d bytes", contract.ErrDamaged, key, size)
	}
	return readRange(ctx, b, key, 0, size)
}
