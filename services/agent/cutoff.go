package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

const (
	// cutOffAfter is how long an object of the stream waits for the bucket before the others are asked whether they reach it.
	cutOffAfter = 10 * time.Second
	cutOffEvery = time.Second
	// cutOffAsk bounds the time in which another agent has to put an object: a bucket that is slow for all is no
	// reason to move.
	cutOffAsk = 3 * time.Second
	// cutOffPause is how long an agent that was told that others don't reach the bucket either does not ask again.
	cutOffPause = 10 * time.Second
)

// errCutOff: this agent can't reach the bucket and others can.
var errCutOff = errors.New("this agent is cut off from the bucket, which another one reaches")

// anew tells whether an agent that has ended so is to begin anew: others lead its partitions, or will.
func anew(err error) bool {
	return (errors.Is(err, wal.ErrFenced) || errors.Is(err, errCutOff)) && !errors.Is(err, errReplaced)
}

// watchBucket ends the agent when nothing has reached the bucket for a while and another agent shows that it can write
// there: this one's lease runs out then, and the others take its partitions over. As long as nobody reaches
// the bucket, all stay: who moved would move in vain, and what is in memory can be read.
func (a *Agent) watchBucket() {
	if a.peers == nil || a.cfg.Role == RoleReader {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.onClose(func() error {
		cancel()
		<-done
		return nil
	})
	go func() {
		defer close(done)
		tick := time.NewTicker(cutOffEvery)
		defer tick.Stop()
		asked := time.Time{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			waits := a.stream.Waiting()
			if waits < cutOffAfter || time.Since(asked) < cutOffPause {
				continue
			}
			if _, local := a.owned(a.incarnation); local > 0 { // they go on without the bucket, and nobody else can lead them
				continue
			}
			if node, ok := a.otherPuts(ctx); ok {
				a.fail(fmt.Errorf("%w (node %d): an object of the stream has waited for %s", errCutOff, node, waits.Round(time.Second)))
				return
			}
			asked = time.Now()
		}
	}()
}

// otherPuts asks the other agents to put an object, and returns one that has.
func (a *Agent) otherPuts(ctx context.Context) (node int32, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, cutOffAsk)
	defer cancel()
	puts := make(chan int32)
	asked := 0
	for _, o := range a.meta.Agents() {
		if o.Reader || o.Incarnation == a.incarnation {
			continue
		}
		asked++
		go func(o metadata.Agent) {
			node := o.Node
			if err := a.peers.Put(ctx, o); err != nil {
				node = -1
				a.component("rpc").Debug("another agent does not reach the bucket either", "node", o.Node, "err", err)
			}
			select {
			case puts <- node:
			case <-ctx.Done():
			}
		}(o)
	}
	for range asked {
		select {
		case node := <-puts:
			if node >= 0 {
				return node, true
			}
		case <-ctx.Done():
			return -1, false
		}
	}
	return -1, false
}

// Put implements rpc.Source.
func (s *source) Put(ctx context.Context) error {
	if s.stream == nil {
		return errors.New("this agent has no stream")
	}
	return s.stream.Change(ctx, wal.Change{})
}
