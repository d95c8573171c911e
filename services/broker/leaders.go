package broker

import (
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Leaders tells who leads partitions.
type Leaders interface {
	// Leader returns the node that leads a partition, or is about to, and the
	// leader epoch; node -1: none is known.
	Leader(id ids.TopicID, partition int32) (node, epoch int32)
	// Nodes lists the live agents.
	Nodes() []Node
}

// NewLeaders returns what the metadata store of a cluster's agent knows. It is safe for concurrent use.
func NewLeaders(meta *metadata.Store) Leaders { return leaders{meta} }

type leaders struct{ meta *metadata.Store }

// Leader implements Leaders.
func (l leaders) Leader(id ids.TopicID, partition int32) (node, epoch int32) {
	t := l.meta.Snapshot().TopicByID(id)
	if t == nil {
		return -1, -1
	}
	o := l.meta.Owner(t, partition)
	if n, ok := l.meta.NodeOf(o.Incarnation); ok {
		return n, o.Epoch
	}
	return -1, o.Epoch
}

// Nodes implements Leaders.
func (l leaders) Nodes() []Node {
	agents := l.meta.Agents()
	out := make([]Node, 0, len(agents))
	for _, a := range agents {
		out = append(out, Node{ID: a.Node, Host: a.Host, Port: a.Port, Rack: a.Rack, Reader: a.Reader})
	}
	return out
}
