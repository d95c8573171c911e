package dynamo

import (
	"context"
	"math/rand/v2"
	"sync"
)

// shard is one of the change log's. Whoever has it out of the pool is the only
// one of this process that appends to it.
type shard struct {
	n   int
	seq uint64 // of the last entry, as far as this process knows
}

// shardPool hands out the shards, the one that came back last first: so each
// process stays with a few, whose sequence it knows. One that another process
// uses too goes to the bottom.
type shardPool struct {
	free chan struct{} // a token for each shard in the stack
	mu   sync.Mutex
	idle []*shard
}

func newShardPool() *shardPool {
	p := &shardPool{free: make(chan struct{}, shards)}
	for _, n := range rand.Perm(shards) {
		p.idle = append(p.idle, &shard{n: n})
		p.free <- struct{}{}
	}
	return p
}

func (p *shardPool) take(ctx context.Context) (*shard, error) {
	select {
	case <-p.free:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sh := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return sh, nil
}

func (p *shardPool) put(sh *shard, shared bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if shared {
		p.idle = append([]*shard{sh}, p.idle...)
	} else {
		p.idle = append(p.idle, sh)
	}
	p.free <- struct{}{}
}

// learn raises the sequences of idle shards to what their heads say.
func (p *shardPool) learn(heads map[int]head) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, sh := range p.idle {
		sh.seq = max(sh.seq, heads[sh.n].seq)
	}
}
