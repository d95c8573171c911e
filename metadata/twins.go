package metadata

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// ErrTaken: a live agent has the node id, or the address, of this one.
var ErrTaken = errors.New("another agent is alive")

// defaultLease of Options.Lease.
const defaultLease = 3 * time.Second

// wantedNode is the node id that the disk remembers or the operator asks for; 0: none.
func (s *Store) wantedNode() (int32, error) {
	want, disk := s.opts.NodeID, s.opts.RememberedNodeID
	if want != 0 && disk != 0 && want != disk {
		return 0, fmt.Errorf("%w: the data directory belongs to node %d, asked for is %d: drop the option, or use another data directory", ErrNodeID, disk, want)
	}
	return max(want, disk), nil
}

// refuseTwins returns ErrTaken if another agent that is alive has this one's node id or address. It
// changes nothing.
func (s *Store) refuseTwins(ctx context.Context) error {
	node, err := s.wantedNode()
	if err != nil {
		return err
	}
	var twins []agentRow
	err = s.rows(ctx, agentPrefix, func(it kv.Item) error {
		var row agentRow
		err := decode("row "+it.Key, it.Value, &row)
		if row.Node == node || row.Host != "" && strings.EqualFold(row.address(), s.opts.Advertised) {
			twins = append(twins, row)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, row := range twins {
		alive, err := s.alive(ctx, row)
		if err != nil {
			return err
		}
		if alive {
			return s.taken(row, node)
		}
	}
	return nil
}

func (r *agentRow) address() string { return net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))) }

// taken says which agent is in the way, and what to do.
func (s *Store) taken(row agentRow, node int32) error {
	at := "not reachable yet"
	if row.Host != "" {
		at = row.address()
	}
	switch {
	case row.Node != node:
		return fmt.Errorf("%w: node %d has the address %s: give this agent another one with --advertised-addr or --kafka-addr, or stop that agent", ErrTaken, row.Node, s.opts.Advertised)
	case s.opts.RememberedNodeID != 0:
		return fmt.Errorf("%w: node %d (%s) has the node id of this data directory: a copy can't run beside its original, start with an empty --data-dir or stop that agent", ErrTaken, row.Node, at)
	}
	return fmt.Errorf("%w: node %d (%s) has the node id asked for: choose another --node-id, or stop that agent", ErrTaken, row.Node, at)
}

// alive tells whether the process of an agent's newest start runs. Of one that this machine can't
// see only its lease tells, if it is renewed: that is looked at for half its length, in
// which a live agent renews it at least once.
func (s *Store) alive(ctx context.Context, row agentRow) (bool, error) {
	self := thisProcess()
	if row.Process != "" && row.Process == self {
		return false, nil // an earlier start in this very process
	}
	if runs, known := row.Process.runs(self); known {
		return runs, nil
	}
	var first uint64
	began := time.Now()
	for try := 0; ; try++ {
		counter, held, err := s.leaseOf(ctx, row.Incarnation)
		if err != nil || !held {
			return false, err
		}
		if try == 0 {
			first = counter
		}
		if counter != first {
			return true, nil
		}
		if time.Since(began) > s.opts.Lease/2 {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(s.opts.Lease / 30):
		}
	}
}

func (s *Store) leaseOf(ctx context.Context, inc ids.Incarnation) (counter uint64, held bool, err error) {
	err = s.retry(ctx, func() (err error) {
		counter, held, err = s.LeaseCounter(ctx, inc)
		return err
	})
	return counter, held, err
}

// Inspect tells, without changing anything, whether Open would refuse these options: ErrForeignBucket,
// ErrVersion, ErrNodeID, ErrTaken, or what the stores say. clusterID is "" if there is none yet.
func Inspect(ctx context.Context, opts Options) (clusterID string, err error) {
	opts.Incarnation = "inspect"
	if err := opts.setDefaults(); err != nil {
		return "", err
	}
	s := &Store{opts: opts}
	if clusterID, err = s.inspectCluster(ctx); err == nil {
		err = s.refuseTwins(ctx)
	}
	return clusterID, unavailable("inspect", err)
}

func (s *Store) inspectCluster(ctx context.Context) (clusterID string, err error) {
	storeID, err := s.storeID(ctx)
	if err != nil {
		return "", err
	}
	owner, row, err := s.readCluster(ctx)
	if err != nil || owner == nil {
		return "", err
	}
	if owner.Store != storeID {
		if err := s.mayAdopt(ctx, owner, row); err != nil {
			return "", err
		}
	}
	return owner.ClusterID, nil
}
