package metadata

import (
	"context"
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// nodeObject is meta/node/<n>: the id is given for ever.
type nodeObject struct {
	Format    int             `json:"format"`
	Node      int32           `json:"node"`
	By        ids.Incarnation `json:"by"`
	ClaimedMs int64           `json:"claimed_ms"`
}

// agentRow is the row agent/<n>: the newest start of a node.
type agentRow struct {
	Format      int             `json:"format"`
	Node        int32           `json:"node"`
	Incarnation ids.Incarnation `json:"incarnation"`
	Epoch       int32           `json:"epoch"`
	StartedMs   int64           `json:"started_ms"`
	// Where Kafka clients reach it, once it has registered.
	Host string `json:"host,omitempty"`
	Port int32  `json:"port,omitempty"`
	Rack string `json:"rack,omitempty"`
	// Reader tells that it is to lead no partitions.
	Reader bool `json:"reader,omitempty"`
	// Process is what runs it, for others on the same machine.
	Process process `json:"process,omitempty"`
	// RPC is where other agents reach it; agents before there was one have none.
	RPC string `json:"rpc,omitempty"`
	// Drained tells that it is to give its partitions away and to be given none.
	Drained bool `json:"drained,omitempty"`
}

// claimNode settles the node id: the one the disk remembers, the one the
// operator asks for, or the next free one. A claim that is already there is
// fine for the first two; it is the same node starting again.
func (s *Store) claimNode(ctx context.Context) error {
	want, err := s.wantedNode()
	if err != nil {
		return err
	}
	if want != 0 {
		if _, err := s.createNode(ctx, want); err != nil {
			return err
		}
		s.nodeID = want
		return nil
	}
	for n := int32(0); ; {
		last, err := s.last(ctx, nodePrefix, numbered(nodePrefix, int64(n)))
		if err != nil {
			return err
		}
		if last != "" {
			greatest, err := parseNumbered(nodePrefix, last)
			if err != nil {
				return err
			}
			if greatest >= 1<<31-1 {
				return fmt.Errorf("%w: all ids up to %d are given: ask for a free one", ErrNodeID, greatest)
			}
			n = int32(greatest)
		}
		won, err := s.createNode(ctx, n+1)
		if err != nil {
			return err
		}
		if won {
			s.nodeID = n + 1
			return nil
		}
	}
}

// createNode claims an id; false: it was claimed before.
func (s *Store) createNode(ctx context.Context, n int32) (bool, error) {
	body, err := encode(nodeObject{Format: formatVersion, Node: n, By: s.opts.Incarnation, ClaimedMs: s.nowMs()})
	if err != nil {
		return false, err
	}
	won, _, err := s.create(ctx, numbered(nodePrefix, int64(n)), body)
	return won, err
}

// raiseNodeEpoch gives this start an epoch above all earlier ones of the node.
// Each start writes its incarnation, so after a lost answer it finds its own.
func (s *Store) raiseNodeEpoch(ctx context.Context) error {
	key := agentKey(s.nodeID)
	return s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		var row agentRow
		if it.Revision != 0 {
			if err := decode("row "+key, it.Value, &row); err != nil {
				return nil, nil, err
			}
			if row.Incarnation == s.opts.Incarnation {
				s.epoch = row.Epoch
				return nil, nil, nil
			}
		}
		s.predecessor = row.Incarnation
		if row.Epoch == 1<<31-1 {
			return nil, nil, fmt.Errorf("row %s: epoch %d can't be raised", key, row.Epoch)
		}
		s.epoch = max(row.Epoch+1, s.opts.MinEpoch)
		v, err := encode(agentRow{Format: formatVersion, Node: s.nodeID, Incarnation: s.opts.Incarnation, Epoch: s.epoch, StartedMs: s.nowMs(), Process: s.process()})
		return []kv.Op{{Key: key, Value: v}}, []kv.Precondition{{Key: key, Revision: it.Revision}}, err
	})
}

// process is this one, for an agent that has others beside it.
func (s *Store) process() process {
	if s.opts.Advertised == "" {
		return ""
	}
	return thisProcess()
}

// PIDBlockSize is how many producer ids one object gives.
const PIDBlockSize = 1000

// rowPID hints at the next block to try; the bucket decides.
const rowPID = "pid"

type pidObject struct {
	Format    int             `json:"format"`
	First     int64           `json:"first"`
	Count     int64           `json:"count"`
	Node      int32           `json:"node"`
	By        ids.Incarnation `json:"by"`
	ClaimedMs int64           `json:"claimed_ms"`
	Nonce     string          `json:"nonce"`
}

type pidRow struct {
	Format int   `json:"format"`
	Next   int64 `json:"next"`
}

// pidBlock is what is left of the block in use; under the lock "".
type pidBlock struct {
	lock      keyedLocks
	next, end int64
}

// NextProducerID returns a producer id that was never given before and never
// will be, whatever is lost but the bucket.
func (s *Store) NextProducerID(ctx context.Context) (int64, error) {
	unlock, err := s.pid.lock.lock(ctx, "")
	if err != nil {
		return 0, unavailable("get producer id", err)
	}
	defer unlock()
	if s.pid.next == s.pid.end {
		n, err := s.claimPIDs(ctx)
		if err != nil {
			return 0, unavailable("get producer ids", err)
		}
		s.pid.next, s.pid.end = n*PIDBlockSize, (n+1)*PIDBlockSize
	}
	s.pid.next++
	return s.pid.next - 1, nil
}

// claimPIDs claims a block of producer ids and returns its number.
func (s *Store) claimPIDs(ctx context.Context) (int64, error) {
	n := s.pidHint(ctx)
	for {
		body, err := encode(pidObject{
			Format: formatVersion, First: n * PIDBlockSize, Count: PIDBlockSize, Node: s.nodeID,
			By: s.opts.Incarnation, ClaimedMs: s.nowMs(), Nonce: string(ids.NewIncarnation()),
		})
		if err != nil {
			return 0, err
		}
		won, _, err := s.create(ctx, numbered(pidPrefix, n), body)
		if err != nil {
			return 0, err
		}
		if won {
			break
		}
		last, err := s.last(ctx, pidPrefix, numbered(pidPrefix, n))
		if err != nil {
			return 0, err
		}
		if last != "" {
			if n, err = parseNumbered(pidPrefix, last); err != nil {
				return 0, err
			}
		}
		if n++; n >= (1<<63-1)/PIDBlockSize {
			return 0, errors.New("producer ids are used up")
		}
	}
	if v, err := encode(pidRow{Format: formatVersion, Next: n + 1}); err == nil {
		if _, err := s.opts.KV.Commit(ctx, []kv.Op{{Key: rowPID, Value: v}}, nil); err != nil {
			s.opts.Logger.Warn("could not write the hint at producer ids", "err", err)
		}
	}
	return n, nil
}

// pidHint is the block to try first. A missing or wrong hint costs a list.
func (s *Store) pidHint(ctx context.Context) int64 {
	it, err := s.row(ctx, rowPID)
	if err != nil || it.Revision == 0 {
		return 0
	}
	var row pidRow
	if err := decode("row "+rowPID, it.Value, &row); err != nil || row.Next < 0 || row.Next >= (1<<63-1)/PIDBlockSize {
		return 0
	}
	return row.Next
}
