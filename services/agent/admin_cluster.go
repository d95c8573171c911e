package agent

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/gateway/rpc"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
)

// askTime bounds the wait for other agents' answers.
const askTime = 5 * time.Second

// ClusterAgent is an agent, and what it answered.
type ClusterAgent struct {
	rpc.Agent
	Drained bool       `json:"drained"`         // leads nothing until its next start, see POST /v1/agents/{node}/drain
	State   *rpc.State `json:"state"`           // nil: it did not answer
	Error   string     `json:"error,omitempty"` // why
}

// ClusterState is the answer of GET /v1/cluster/state.
type ClusterState struct {
	Cluster string `json:"cluster"`
	Asked   int32  `json:"asked"` // the agent that answers, and whose view of the others this is
	// Generation counts the recoveries of the metadata store.
	Generation int64          `json:"generation"`
	Bucket     string         `json:"bucket"`
	Metadata   string         `json:"metadata"` // redis, dynamo or bolt
	Topics     int            `json:"topics"`
	Partitions int            `json:"partitions"`
	Leaderless int            `json:"leaderless"` // partitions whose leader is no agent that is registered
	Agents     []ClusterAgent `json:"agents"`
}

// ClusterPartition is a partition and who leads it.
type ClusterPartition struct {
	Node int32 `json:"node"`
	rpc.Partition
}

// ClusterPartitions is the answer of GET /v1/cluster/partitions.
type ClusterPartitions struct {
	Partitions []ClusterPartition `json:"partitions"` // by topic and number
	// Silent are the agents that did not answer, and why.
	Silent []SilentAgent `json:"silent"`
}

// SilentAgent is an agent that did not answer.
type SilentAgent struct {
	Node  int32  `json:"node"`
	Error string `json:"error"`
}

// eachAgent calls f for all of the agents at the same time; other is nil for this one.
func (a *Agent) eachAgent(agents []metadata.Agent, f func(i int, other *metadata.Agent)) {
	var wg sync.WaitGroup
	for i := range agents {
		wg.Go(func() {
			if agents[i].Incarnation == a.incarnation {
				f(i, nil)
				return
			}
			f(i, &agents[i])
		})
	}
	wg.Wait()
}

// registered are the agents of the cluster; alone this one.
func (a *Agent) registered() []metadata.Agent {
	if !a.clustered() {
		return []metadata.Agent{{Node: a.meta.NodeID(), Incarnation: a.incarnation}}
	}
	return a.meta.Agents()
}

func (a *Agent) clusterState(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	self, err := (*source)(a).State(ctx)
	if err != nil {
		writeError(w, err)
		return
	}
	agents := a.registered()
	out := ClusterState{Cluster: a.meta.ClusterID(), Asked: a.meta.NodeID(), Generation: a.meta.Generation(), Bucket: bucketurl.Redact(a.cfg.bucketURL()), Metadata: a.kvName, Agents: make([]ClusterAgent, len(agents))}
	a.countLed(&out, agents)
	seen := map[ids.Incarnation]rpc.Agent{}
	for _, o := range self.Agents {
		seen[o.Incarnation] = o
	}
	a.eachAgent(agents, func(i int, other *metadata.Agent) {
		one := ClusterAgent{Agent: seen[agents[i].Incarnation], Drained: agents[i].Drained}
		one.Node, one.Incarnation = agents[i].Node, agents[i].Incarnation
		st, err := self, error(nil)
		if other != nil {
			st, err = a.ask(ctx, *other)
		}
		if one.State = &st; err != nil {
			one.State, one.Error = nil, err.Error()
		}
		out.Agents[i] = one
	})
	writeJSON(w, http.StatusOK, out)
}

// countLed counts topics, partitions, and those that none of the agents leads.
func (a *Agent) countLed(out *ClusterState, agents []metadata.Agent) {
	there := map[ids.Incarnation]bool{}
	for _, o := range agents {
		there[o.Incarnation] = true
	}
	for _, t := range a.meta.Snapshot().Topics() {
		out.Topics++
		out.Partitions += int(t.Partitions)
		for p := range t.Partitions {
			if a.clustered() && !there[a.meta.Owner(t, p).Incarnation] {
				out.Leaderless++
			}
		}
	}
}

// ask asks another agent for its state.
func (a *Agent) ask(ctx context.Context, other metadata.Agent) (rpc.State, error) {
	if a.peers == nil {
		return rpc.State{}, errNoRPC
	}
	return a.peers.State(ctx, other)
}

func (a *Agent) clusterPartitions(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	topic := r.URL.Query().Get("topic")
	if topic != "" {
		if _, err := a.broker.Led(topic); err != nil {
			writeError(w, err)
			return
		}
	}
	agents := a.registered()
	out := ClusterPartitions{Partitions: []ClusterPartition{}, Silent: []SilentAgent{}}
	var mu sync.Mutex
	a.eachAgent(agents, func(i int, other *metadata.Agent) {
		ps, err := a.partitionsOf(ctx, other, topic)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			out.Silent = append(out.Silent, SilentAgent{agents[i].Node, err.Error()})
		}
		for _, p := range ps {
			out.Partitions = append(out.Partitions, ClusterPartition{agents[i].Node, p})
		}
	})
	slices.SortFunc(out.Partitions, func(a, b ClusterPartition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition.Partition, b.Partition.Partition), cmp.Compare(b.Epoch, a.Epoch))
	})
	slices.SortFunc(out.Silent, func(a, b SilentAgent) int { return cmp.Compare(a.Node, b.Node) })
	writeJSON(w, http.StatusOK, out)
}

// partitionsOf asks another agent, or this one, what it leads.
func (a *Agent) partitionsOf(ctx context.Context, other *metadata.Agent, topic string) ([]rpc.Partition, error) {
	switch {
	case other == nil:
		return (*source)(a).Partitions(ctx, topic)
	case a.peers == nil:
		return nil, errNoRPC
	}
	return a.peers.Partitions(ctx, *other, topic)
}
