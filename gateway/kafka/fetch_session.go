package kafka

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"sync/atomic"
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

	// ready is the place among the partitions that the next answer may tell
	// of; nil: nothing is new, and a wake will say when something is.
	ready *list.Element
	wakes *wakes
	woken atomic.Bool // in wakes
	// What is watched, and how that ends; nil: nothing yet.
	watched Source
	unwatch func()
	// result is the place in the results of the request at hand, plus one.
	result int

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

// wakes collects partitions that have news.
type wakes struct {
	mu   sync.Mutex
	list []*fetchPart
	c    chan struct{} // ready while list is not empty
}

func newWakes() *wakes { return &wakes{c: make(chan struct{}, 1)} }

// Wake implements broker.Watcher: the partition has news.
func (p *fetchPart) Wake() {
	if p.woken.Swap(true) {
		return // noted, and not yet looked at
	}
	w := p.wakes
	w.mu.Lock()
	w.list = append(w.list, p)
	w.mu.Unlock()
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// take returns the partitions that were woken since the last call. Who reads
// them after it sees all that they were woken for.
func (w *wakes) take() []*fetchPart {
	w.mu.Lock()
	list := w.list
	w.list = nil
	w.mu.Unlock()
	for _, p := range list {
		p.woken.Store(false)
	}
	return list
}

// watch makes wakes of the news of part, and of nothing else any more.
func (p *fetchPart) watch(part Source) {
	if p.watched == part {
		return
	}
	p.endWatch()
	if part != nil {
		p.watched, p.unwatch = part, part.Watch(p)
	}
}

func (p *fetchPart) endWatch() {
	if p.unwatch != nil {
		p.unwatch()
	}
	p.watched, p.unwatch = nil, nil
}

// fetchSession is an incremental fetch session (KIP-227): the server remembers
// the partitions, the client sends only what changes. A request costs what has
// changed: the partitions are watched for as long as the session lives, and
// those without news are not looked at.
type fetchSession struct {
	id     int32
	usesID bool // made by version 13 or later, which name topics by id

	// Guarded by the cache's mutex.
	elem *list.Element
	used time.Time
	rows int // partitions as the cache counts them

	mu    sync.Mutex // held while a request of the session is handled
	epoch int32      // the next one expected
	ready *list.List // of *fetchPart that may have news, in the order of their turns
	index map[fetchKey]*fetchPart
	wakes *wakes
	// dropped says that the session has left the cache.
	dropped atomic.Bool
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
	var gone []*fetchSession
	defer func() {
		for _, s := range gone {
			s.cleanUp()
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.byID) >= c.limit || c.rows+len(parts) > c.maxRows {
		first := c.lru.Front()
		if first == nil || now.Sub(first.Value.(*fetchSession).used) < minEvict {
			return nil
		}
		gone = append(gone, first.Value.(*fetchSession))
		c.dropLocked(first.Value.(*fetchSession))
	}
	s := &fetchSession{epoch: 1, usesID: usesID, used: now, rows: len(parts), ready: list.New(), wakes: newWakes(), index: make(map[fetchKey]*fetchPart, len(parts))}
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

// dropLocked takes the session out of the cache; the caller then calls cleanUp,
// without the cache's lock.
func (c *sessionCache) dropLocked(s *fetchSession) {
	delete(c.byID, s.id)
	c.lru.Remove(s.elem)
	c.rows -= s.rows
	s.dropped.Store(true)
}

func (c *sessionCache) drop(id int32) {
	c.mu.Lock()
	s := c.byID[id]
	if s != nil {
		c.dropLocked(s)
	}
	c.mu.Unlock()
	if s != nil {
		s.cleanUp()
	}
}

// close drops all sessions.
func (c *sessionCache) close() {
	c.mu.Lock()
	var all []*fetchSession
	for _, s := range c.byID {
		all = append(all, s)
		c.dropLocked(s)
	}
	c.mu.Unlock()
	for _, s := range all {
		s.cleanUp()
	}
}

// cleanUp ends the watches of a dropped session, unless a request of it is
// under way: that one does it when it is done.
func (s *fetchSession) cleanUp() {
	if !s.dropped.Load() || !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	for _, p := range s.index {
		p.endWatch()
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

// set adds a partition, or takes over what the client wants of a known one. It
// is looked at by the next answer.
func (s *fetchSession) set(p *fetchPart) {
	old := s.index[p.key()]
	if old == nil {
		p.wakes = s.wakes
		s.index[p.key()] = p
		s.enlist(p)
		return
	}
	old.offset, old.maxBytes, old.epoch, old.lastEpoch = p.offset, p.maxBytes, p.epoch, p.lastEpoch
	s.enlist(old)
}

func (s *fetchSession) forget(k fetchKey) {
	if p := s.index[k]; p != nil {
		s.settle(p)
		p.endWatch()
		delete(s.index, k)
	}
}

// enlist makes a partition one that the next answer may tell of.
func (s *fetchSession) enlist(p *fetchPart) {
	if p.ready == nil {
		p.ready = s.ready.PushBack(p)
	}
}

// settle is the opposite of enlist: nothing is new until a wake.
func (s *fetchSession) settle(p *fetchPart) {
	if p.ready != nil {
		s.ready.Remove(p.ready)
		p.ready = nil
	}
}

// turn moves a partition which got data to the end, so that it does not starve
// the others.
func (s *fetchSession) turn(p *fetchPart) {
	if p.ready != nil {
		s.ready.MoveToBack(p.ready)
	}
}

// woken enlists the partitions that were woken and returns them.
func (s *fetchSession) woken() []*fetchPart {
	list := s.wakes.take()
	out := list[:0]
	for _, p := range list {
		if s.index[p.key()] == p { // else forgotten meanwhile
			s.enlist(p)
			out = append(out, p)
		}
	}
	return out
}

// candidates returns the partitions that may have news, in order.
func (s *fetchSession) candidates() []*fetchPart {
	s.woken()
	out := make([]*fetchPart, 0, s.ready.Len())
	for e := s.ready.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*fetchPart))
	}
	return out
}

// fetchContext is what one request fetches, and in which session.
type fetchContext struct {
	session     *fetchSession // nil outside sessions; locked
	incremental bool
	parts       []*fetchPart // in a session those that may have news
	wakes       *wakes
}

func (f *fetchContext) close() {
	if f.session == nil {
		for _, p := range f.parts {
			p.endWatch()
		}
		return
	}
	f.session.mu.Unlock()
	f.session.cleanUp()
}

// woken returns the partitions that have news since the last call.
func (f *fetchContext) woken() []*fetchPart {
	if f.session != nil {
		return f.session.woken()
	}
	return f.wakes.take()
}

// sessionless is the context of a request outside sessions.
func sessionless(parts []*fetchPart) *fetchContext {
	f := &fetchContext{parts: parts, wakes: newWakes()}
	for _, p := range parts {
		p.wakes = f.wakes
	}
	return f
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
		return sessionless(parts), nil
	}
	if req.SessionEpoch == 0 {
		if req.SessionID != 0 {
			c.drop(req.SessionID)
		}
		s := c.create(parts, req.Version >= 13, time.Now())
		if s == nil {
			return sessionless(parts), nil
		}
		s.mu.Lock()
		return &fetchContext{session: s, parts: s.candidates(), wakes: s.wakes}, nil
	}
	s := c.get(req.SessionID)
	if s == nil {
		return nil, kerr.FetchSessionIDNotFound
	}
	s.mu.Lock()
	if err := c.advance(s, req, parts); err != nil {
		s.mu.Unlock()
		s.cleanUp()
		return nil, err
	}
	return &fetchContext{session: s, incremental: true, parts: s.candidates(), wakes: s.wakes}, nil
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
			all = append(all, fetchPart{})
			q := &all[len(all)-1]
			q.name, q.id, q.partition, q.offset = t.Topic, ids.TopicID(t.TopicID), p.Partition, p.FetchOffset
			q.maxBytes, q.epoch, q.lastEpoch = p.PartitionMaxBytes, p.CurrentLeaderEpoch, p.LastFetchedEpoch
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
