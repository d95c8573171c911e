package metadata

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Agent is an agent as the others see it.
type Agent struct {
	Node        int32
	Incarnation ids.Incarnation
	Epoch       int32
	Host        string // as Kafka clients reach it
	Port        int32
	Rack        string
	Reader      bool   // leads no partitions
	Drained     bool   // gives its partitions away, and is given none while there are others
	RPC         string // HOST:PORT as other agents reach it; "": not at all
	StartedMs   int64
}

// agentTable has the newest start of every node.
type agentTable struct {
	mu sync.RWMutex
	m  map[int32]Agent
}

func (t *agentTable) set(a Agent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[int32]Agent{}
	}
	if have, ok := t.m[a.Node]; !ok || a.Epoch >= have.Epoch {
		t.m[a.Node] = a
	}
}

func (t *agentTable) drop(node int32) {
	t.mu.Lock()
	delete(t.m, node)
	t.mu.Unlock()
}

const agentPrefix = "agent/"

func agentKey(node int32) string { return agentPrefix + strconv.Itoa(int(node)) }

func leaseKey(inc ids.Incarnation) string { return "lease/" + string(inc) }

// Agents lists the newest start of every node that has registered, dead ones too,
// by node id.
func (s *Store) Agents() []Agent {
	s.agents.mu.RLock()
	defer s.agents.mu.RUnlock()
	out := make([]Agent, 0, len(s.agents.m))
	for _, a := range s.agents.m {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Node < out[j].Node })
	return out
}

// Agent returns an incarnation that is the newest start of a node.
func (s *Store) Agent(inc ids.Incarnation) (Agent, bool) {
	s.agents.mu.RLock()
	defer s.agents.mu.RUnlock()
	for _, a := range s.agents.m {
		if a.Incarnation == inc {
			return a, true
		}
	}
	return Agent{}, false
}

// NodeOf returns the node of an incarnation that is the newest start of one.
func (s *Store) NodeOf(inc ids.Incarnation) (node int32, ok bool) {
	if a, ok := s.Agent(inc); ok {
		return a.Node, true
	}
	return -1, false
}

// Drained tells whether an agent is to lead nothing until its next start.
func (s *Store) Drained(inc ids.Incarnation) bool {
	a, _ := s.Agent(inc)
	return a.Drained
}

// SetDrained says whether an agent that is registered is to give its partitions away and to be given none, until
// it is started again. ErrUnknownNode: there is none of that node id.
func (s *Store) SetDrained(ctx context.Context, node int32, drained bool) (Agent, error) {
	return s.setDrained(ctx, node, "", drained)
}

// Leaving tells the others that this agent stops: as SetDrained, unless its node was started again meanwhile.
func (s *Store) Leaving(ctx context.Context) error {
	_, err := s.setDrained(ctx, s.nodeID, s.opts.Incarnation, true)
	return err
}

// setDrained is of the incarnation inc alone, unless that is "".
func (s *Store) setDrained(ctx context.Context, node int32, inc ids.Incarnation, drained bool) (Agent, error) {
	key := agentKey(node)
	var row agentRow
	err := s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		row = agentRow{}
		if it.Revision != 0 {
			if err := decode("row "+key, it.Value, &row); err != nil {
				return nil, nil, err
			}
		}
		if row.Host == "" || inc != "" && row.Incarnation != inc {
			return nil, nil, fmt.Errorf("%w: %d", ErrUnknownNode, node)
		}
		if row.Drained == drained {
			return nil, nil, nil
		}
		row.Drained = drained
		v, err := encode(row)
		return []kv.Op{{Key: key, Value: v}}, []kv.Precondition{{Key: key, Revision: it.Revision}}, err
	})
	return row.agent(), unavailable(fmt.Sprintf("drain agent %d", node), err)
}

func (r *agentRow) agent() Agent {
	return Agent{Node: r.Node, Incarnation: r.Incarnation, Epoch: r.Epoch, Host: r.Host, Port: r.Port, Rack: r.Rack, Reader: r.Reader, Drained: r.Drained, RPC: r.RPC, StartedMs: r.StartedMs}
}

// Register tells the others where this agent is. It comes after object 0 of the agent's stream. Once
// it is registered this only makes sure that the row is still there.
func (s *Store) Register(ctx context.Context, host string, port int32, rack string) error {
	key := agentKey(s.nodeID)
	err := s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		var row agentRow
		if it.Revision != 0 {
			if err := decode("row "+key, it.Value, &row); err != nil {
				return nil, nil, err
			}
			if row.Epoch > s.epoch {
				return nil, nil, fmt.Errorf("%w: node %d was started again as %s: two agents run with one node id, stop one or give it another --node-id", ErrNodeID, s.nodeID, row.Incarnation)
			}
		}
		if row.Incarnation == s.opts.Incarnation && row.Host == host && row.Port == port && row.Rack == rack {
			return nil, nil, nil
		}
		next := agentRow{Format: formatVersion, Node: s.nodeID, Incarnation: s.opts.Incarnation, Epoch: s.epoch, StartedMs: s.nowMs(), Host: host, Port: port, Rack: rack, Reader: s.opts.Reader, Process: s.process(), RPC: s.opts.RPC,
			Drained: s.Drained(s.opts.Incarnation)} // of a row that the store has lost
		v, err := encode(next)
		return []kv.Op{{Key: key, Value: v}}, []kv.Precondition{{Key: key, Revision: it.Revision}}, err
	})
	return unavailable("register agent", err)
}

// Predecessor is the start of this node before this one; "": there was none.
func (s *Store) Predecessor() ids.Incarnation { return s.predecessor }

// RemoveAgent removes the row of an agent whose stream is sealed, unless its node was
// started again.
func (s *Store) RemoveAgent(ctx context.Context, node int32, inc ids.Incarnation) error {
	key := agentKey(node)
	err := s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil || it.Revision == 0 {
			return nil, nil, err
		}
		var row agentRow
		if err := decode("row "+key, it.Value, &row); err != nil || row.Incarnation != inc {
			return nil, nil, err
		}
		return []kv.Op{{Key: key, Delete: true}}, []kv.Precondition{{Key: key, Revision: it.Revision}}, nil
	})
	return unavailable(fmt.Sprintf("remove agent %d", node), err)
}

// RenewLease takes or renews the lease of this agent's start.
func (s *Store) RenewLease(ctx context.Context, ttl time.Duration) error {
	renew := func() error {
		return s.opts.KV.Acquire(ctx, leaseKey(s.opts.Incarnation), string(s.opts.Incarnation), ttl)
	}
	err := renew()
	if !errors.Is(err, kv.ErrLost) {
		return err
	}
	if rerr := s.rejoin(ctx); rerr != nil {
		return fmt.Errorf("%w: %w", err, rerr)
	}
	return renew()
}

// DropLease gives the lease up.
func (s *Store) DropLease(ctx context.Context) error {
	err := s.opts.KV.Release(ctx, leaseKey(s.opts.Incarnation), string(s.opts.Incarnation))
	if errors.Is(err, kv.ErrLeaseLost) {
		return nil
	}
	return err
}

// LeaseCounter returns the counter of another agent's lease, which changes with every
// renewal, and whether the store takes the lease for alive.
func (s *Store) LeaseCounter(ctx context.Context, inc ids.Incarnation) (counter uint64, held bool, err error) {
	owner, counter, err := s.opts.KV.Holder(ctx, leaseKey(inc))
	return counter, owner == string(inc), err
}

// TrySealing takes the right to seal a stream for ttl; it only avoids double work.
func (s *Store) TrySealing(ctx context.Context, dead ids.Incarnation, ttl time.Duration) error {
	return s.opts.KV.Acquire(ctx, "sealing/"+string(dead), string(s.opts.Incarnation), ttl)
}

// Duty is work that one agent of the cluster does for all.
type Duty string

// What one agent does at a time.
const (
	SweepStreams  Duty = "sweeping/streams"  // of sealed streams
	SweepSegments Duty = "sweeping/segments" // of data/
)

// TryDuty takes the right to d for ttl, or keeps it; it only avoids double work. false without an error: another agent
// has it.
func (s *Store) TryDuty(ctx context.Context, d Duty, ttl time.Duration) (bool, error) {
	err := s.opts.KV.Acquire(ctx, string(d), string(s.opts.Incarnation), ttl)
	if errors.Is(err, kv.ErrLeaseLost) {
		return false, nil
	}
	return err == nil, unavailable("take the right to "+string(d), err)
}

// EndDuty gives the right to d to others.
func (s *Store) EndDuty(ctx context.Context, d Duty) error {
	err := s.opts.KV.Release(ctx, string(d), string(s.opts.Incarnation))
	if errors.Is(err, kv.ErrLeaseLost) {
		return nil
	}
	return unavailable("give up the right to "+string(d), err)
}

// applyAgent notes a row of an agent.
func (s *Store) applyAgent(it kv.Item) error {
	node, err := strconv.ParseInt(strings.TrimPrefix(it.Key, agentPrefix), 10, 32)
	if err != nil {
		return fmt.Errorf("%w: row %s", ErrDamaged, it.Key)
	}
	if it.Value == nil {
		s.agents.drop(int32(node))
		return nil
	}
	var row agentRow
	if err := decode("row "+it.Key, it.Value, &row); err != nil {
		return err
	}
	if row.Host != "" { // else it has not registered yet
		s.agents.set(row.agent())
	}
	return nil
}
