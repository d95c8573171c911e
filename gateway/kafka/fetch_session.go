package kafka

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// fetchPart is one partition of a Fetch request or session.
type fetchPart struct {
	name      string // as the client gave it; "" from version 13 on
	id        ids.TopicID
	partition int32
	offset    int64
	maxBytes  int32
	epoch     int32 // current leader epoch, -1 none
	lastEpoch int32 // of the last fetched record, -1 none

	// What the client was told last, to leave out what has not changed.
	told      bool
	toldHW    int64
	toldStart int64
}

type fetchKey struct {
	name      string
	id        ids.TopicID
	partition int32
}

func (p *fetchPart) key() fetchKey { return fetchKey{p.name, p.id, p.partition} }

// fetchSession is an incremental fetch session (KIP-227): the server remembers
// the partitions, the client sends only what changes.
type fetchSession struct {
	id    int32
	elem  *list.Element
	used  time.Time
	inUse bool

	mu    sync.Mutex
	epoch int32 // the next one expected
	parts []*fetchPart
	index map[fetchKey]int
}

// sessionCache holds a bounded number of sessions; when it is full the least
// recently used one gives way, if it has not been used for minEvict.
type sessionCache struct {
	limit int
	mu    sync.Mutex
	byID  map[int32]*fetchSession
	lru   *list.List
}

// minEvict is how long a session is safe from others (Kafka's
// min.incremental.fetch.session.eviction.ms).
const minEvict = 2 * time.Minute

func newSessionCache(limit int) *sessionCache {
	return &sessionCache{limit: limit, byID: map[int32]*fetchSession{}, lru: list.New()}
}

// create makes a session, or returns nil when there is no room.
func (c *sessionCache) create(parts []*fetchPart) *fetchSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byID) >= c.limit {
		old := c.lru.Front().Value.(*fetchSession)
		if time.Since(old.used) < minEvict {
			return nil
		}
		c.dropLocked(old)
	}
	s := &fetchSession{epoch: 1, used: time.Now(), index: make(map[fetchKey]int, len(parts))}
	for s.id == 0 || c.byID[s.id] != nil {
		s.id = rand.Int32()
	}
	for _, p := range parts {
		s.set(p)
	}
	s.elem = c.lru.PushBack(s)
	c.byID[s.id] = s
	return s
}

func (c *sessionCache) dropLocked(s *fetchSession) {
	delete(c.byID, s.id)
	c.lru.Remove(s.elem)
}

func (c *sessionCache) drop(id int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.byID[id]; s != nil {
		c.dropLocked(s)
	}
}

func (c *sessionCache) get(id int32) *fetchSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.byID[id]
	if s != nil {
		s.used = time.Now()
		c.lru.MoveToBack(s.elem)
	}
	return s
}

// set adds or replaces a partition, keeping what the client was told of it.
func (s *fetchSession) set(p *fetchPart) {
	if i, ok := s.index[p.key()]; ok {
		old := s.parts[i]
		p.told, p.toldHW, p.toldStart = old.told, old.toldHW, old.toldStart
		s.parts[i] = p
		return
	}
	s.index[p.key()] = len(s.parts)
	s.parts = append(s.parts, p)
}

func (s *fetchSession) forget(k fetchKey) {
	i, ok := s.index[k]
	if !ok {
		return
	}
	s.parts = append(s.parts[:i], s.parts[i+1:]...)
	delete(s.index, k)
	for j := i; j < len(s.parts); j++ {
		s.index[s.parts[j].key()] = j
	}
}

// rotate moves the first n partitions to the end, so that those which got data
// do not starve the others.
func (s *fetchSession) rotate(served map[*fetchPart]bool) {
	if len(served) == 0 || len(served) == len(s.parts) && len(s.parts) == 1 {
		return
	}
	rest := make([]*fetchPart, 0, len(s.parts))
	var tail []*fetchPart
	for _, p := range s.parts {
		if served[p] {
			tail = append(tail, p)
		} else {
			rest = append(rest, p)
		}
	}
	s.parts = append(rest, tail...)
	for i, p := range s.parts {
		s.index[p.key()] = i
	}
}

// fetchContext is what one request fetches, and in which session.
type fetchContext struct {
	session     *fetchSession // nil outside sessions; locked
	incremental bool
	parts       []*fetchPart
}

func (f *fetchContext) close() {
	if f.session != nil {
		f.session.mu.Unlock()
	}
}

// open finds out what a request wants. The session epoch says: -1 no session
// (and end the given one), 0 a full request that begins a session, else the
// next increment.
func (c *sessionCache) open(req *kmsg.FetchRequest) (*fetchContext, error) {
	parts := requestParts(req)
	if req.Version < 7 || req.SessionEpoch == -1 {
		if req.Version >= 7 && req.SessionID != 0 {
			c.drop(req.SessionID)
		}
		return &fetchContext{parts: parts}, nil
	}
	if req.SessionEpoch == 0 {
		if req.SessionID != 0 {
			c.drop(req.SessionID)
		}
		s := c.create(parts)
		if s == nil {
			return &fetchContext{parts: parts}, nil
		}
		s.mu.Lock()
		return &fetchContext{session: s, parts: append([]*fetchPart(nil), s.parts...)}, nil
	}
	s := c.get(req.SessionID)
	if s == nil {
		return nil, kerr.FetchSessionIDNotFound
	}
	s.mu.Lock()
	if s.epoch != req.SessionEpoch {
		s.mu.Unlock()
		return nil, kerr.InvalidFetchSessionEpoch
	}
	if s.epoch++; s.epoch <= 0 {
		s.epoch = 1
	}
	for _, t := range req.ForgottenTopics {
		for _, p := range t.Partitions {
			s.forget(fetchKey{name: t.Topic, id: ids.TopicID(t.TopicID), partition: p})
		}
	}
	for _, p := range parts {
		s.set(p)
	}
	return &fetchContext{session: s, incremental: true, parts: append([]*fetchPart(nil), s.parts...)}, nil
}

func requestParts(req *kmsg.FetchRequest) []*fetchPart {
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	all := make([]fetchPart, 0, n)
	out := make([]*fetchPart, 0, n)
	for i := range req.Topics {
		t := &req.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			all = append(all, fetchPart{name: t.Topic, id: ids.TopicID(t.TopicID), partition: p.Partition, offset: p.FetchOffset,
				maxBytes: p.PartitionMaxBytes, epoch: p.CurrentLeaderEpoch, lastEpoch: p.LastFetchedEpoch})
			q := &all[len(all)-1]
			if req.Version < 9 {
				q.epoch = -1
			}
			if req.Version < 12 {
				q.lastEpoch = -1
			}
			out = append(out, q)
		}
	}
	return out
}
