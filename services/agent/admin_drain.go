package agent

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/cirrolog/cirrolog/metadata"
)

// DrainState is the answer of POST /v1/agents/{node}/drain and undrain.
type DrainState struct {
	Node    int32 `json:"node"`
	Drained bool  `json:"drained"`
	Leads   int   `json:"leads"` // partitions that it leads still
	// Stays are those of Leads that are of class local: they stay with its disk.
	Stays int `json:"stays"`
}

// errNobody: there is no agent that could lead what another one gives away.
var errNobody = errors.New("no other agent could lead its partitions")

// drain has an agent give its partitions away, or lead again. What is to be is written into the agent's row, which it
// finds by itself: any agent may be asked, again and again, how far it is.
func (a *Agent) drain(drained bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		node, err := strconv.ParseInt(r.PathValue("node"), 10, 32)
		switch {
		case err != nil:
			err = fmt.Errorf("%w: node %q is not a number", errBadQuery, r.PathValue("node"))
		case !a.clustered():
			err = fmt.Errorf("%w: this node is alone (`cirrolog serve`)", errNobody)
		case drained:
			err = a.othersThan(r, int32(node))
		}
		if err != nil {
			writeError(w, err)
			return
		}
		o, err := a.meta.SetDrained(r.Context(), int32(node), drained)
		if err != nil {
			writeError(w, err)
			return
		}
		out := DrainState{Node: o.Node, Drained: o.Drained}
		out.Leads, out.Stays = a.owned(o.Incarnation)
		writeJSON(w, http.StatusOK, out)
	}
}

// othersThan makes sure that some agent beside node lives, leads and is not drained.
func (a *Agent) othersThan(r *http.Request, node int32) error {
	agents := a.meta.Agents()
	if !slices.ContainsFunc(agents, func(o metadata.Agent) bool { return o.Node == node }) {
		return nil // that is another mistake
	}
	for _, o := range agents {
		if o.Node == node || o.Reader || o.Drained {
			continue
		}
		if _, held, err := a.meta.LeaseCounter(r.Context(), o.Incarnation); err != nil || held {
			return err
		}
	}
	return fmt.Errorf("%w: node %d is the only one that lives, is no reader and is not drained", errNobody, node)
}
