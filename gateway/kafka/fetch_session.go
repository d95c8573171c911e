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

	elem *list.Element // in its session's order

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
	id     int32
	usesID bool // made by version 13 or later, which name topics by id

	// Guarded by the cache's mutex.
	elem *list.Element
	used time.Time
	rows int // partitions as the cache counts them

	mu    sync.Mutex // held while a request of the session is handled
	epoch int32      // the next one expected
	order *list.List // of *fetchPart
	index map[fetchKey]*fetchPart
}

// sessionCache holds a bounded number of sessions with a bounded number of
// partitions; when it is full the least recently used one gives way, if it has
// not been used for minEvict.
type sessionCache struct {
	limit, maxRows int

	mu   sync.Mutex
	byID map[int32]*fetchSession
	lru  *list.List
	rows int
}

// minEvict is how long a session is safe from others (Kafka's
// min.incremental.fetch.session.eviction.ms).
const minEvict = 2 * time.Minute

func newSessionCache(limit, maxRows int) *sessionCache {
	return &sessionCache{limit: limit, maxRows: maxRows, byID: map[int32]*fetchSession{}, lru: list.New()}
}

// create makes a session, or returns nil when there is no room.
func (c *sessionCache) create(parts []*fetchPart, usesID bool, now time.Time) *fetchSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.byID) >= c.limit || c.rows+len(parts) > c.maxRows {
		first := c.lru.Front()
		if first == nil || now.Sub(first.Value.(*fetchSession).used) < minEvict {
			return nil
		}
		c.dropLocked(first.Value.(*fetchSession))
	}
	s := &fetchSession{epoch: 1, usesID: usesID, used: now, rows: len(parts), order: list.New(), index: make(map[fetchKey]*fetchPart, len(parts))}
	for s.id <= 0 || c.byID[s.id] != nil {
		s.id = rand.Int32()
	}
	for _, p := range parts {
		s.set(p)
	}
	s.elem = c.lru.PushBack(s)
	c.byID[s.id] = s
	c.rows += s.rows
	return s
}

func (c *sessionCache) dropLocked(s *fetchSession) {
	delete(c.byID, s.id)
	c.lru.Remove(s.elem)
	c.rows -= s.rows
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

// count takes note of how many partitions a session has. When there is no room
// for them the session is dropped and false returned.
func (c *sessionCache) count(s *fetchSession, rows int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[s.id] != s {
		return true // dropped meanwhile: this is its last request
	}
	if rows > s.rows && c.rows+rows-s.rows > c.maxRows {
		c.dropLocked(s)
		return false
	}
	c.rows += rows - s.rows
	s.rows = rows
	return true
}

// set adds or replaces a partition, keeping its place and what the client was
// told of it.
func (s *fetchSession) set(p *fetchPart) {
	if old := s.index[p.key()]; old != nil {
		p.told, p.toldHW, p.toldStart, p.elem = old.told, old.toldHW, old.toldStart, old.elem
		p.elem.Value = p
	} else {
		p.elem = s.order.PushBack(p)
	}
	s.index[p.key()] = p
}

func (s *fetchSession) forget(k fetchKey) {
	if p := s.index[k]; p != nil {
		s.order.Remove(p.elem)
		delete(s.index, k)
	}
}

// rotate moves the partitions which got data to the end, so that they do not
// starve the others.
func (s *fetchSession) rotate(served []*fetchPart) {
	for _, p := range served {
		s.order.MoveToBack(p.elem)
	}
}

// snapshot returns the partitions in order.
func (s *fetchSession) snapshot() []*fetchPart {
	out := make([]*fetchPart, 0, s.order.Len())
	for e := s.order.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*fetchPart))
	}
	return out
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
		s := c.create(parts, req.Version >= 13, time.Now())
		if s == nil {
			return &fetchContext{parts: parts}, nil
		}
		s.mu.Lock()
		return &fetchContext{session: s, parts: s.snapshot()}, nil
	}
	s := c.get(req.SessionID)
	if s == nil {
		return nil, kerr.FetchSessionIDNotFound
	}
	s.mu.Lock()
	if err := c.advance(s, req, parts); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	return &fetchContext{session: s, incremental: true, parts: s.snapshot()}, nil
}

// advance applies an increment to a session.
func (c *sessionCache) advance(s *fetchSession, req *kmsg.FetchRequest, parts []*fetchPart) error {
	switch {
	case s.usesID != (req.Version >= 13):
		return kerr.FetchSessionTopicIDError
	case s.epoch != req.SessionEpoch:
		return kerr.InvalidFetchSessionEpoch
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
	if !c.count(s, len(s.index)) {
		return kerr.FetchSessionIDNotFound
	}
	return nil
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
