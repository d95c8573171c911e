package group

import "time"

// Type is the type of all groups of this package, as ListGroups names it.
const Type = "classic"

// State of a group.
type State uint8

// The states of a classic group. Dead is one whose deletion is being written.
const (
	Empty State = iota
	PreparingRebalance
	CompletingRebalance
	Stable
	Dead
)

// String is the state as Kafka writes it in answers.
func (s State) String() string {
	switch s {
	case Empty:
		return "Empty"
	case PreparingRebalance:
		return "PreparingRebalance"
	case CompletingRebalance:
		return "CompletingRebalance"
	case Stable:
		return "Stable"
	}
	return "Dead"
}

// member of a group, linked in the order of joining.
type member struct {
	id, instance         string
	clientID, clientHost string
	protocols            []Protocol
	session, rebalance   time.Duration
	assignment           []byte

	join, sync  Ticket // the requests that wait, or 0
	isNew       bool   // its first join has not been answered
	pendingSync bool   // must still send SyncGroup in this generation
	deadline    time.Time

	prev, next *member
}

func (m *member) metadata(protocol string) []byte {
	for i := range m.protocols {
		if m.protocols[i].Name == protocol {
			return m.protocols[i].Metadata
		}
	}
	return nil
}

// matches says whether a join offers what the member offered before.
func (m *member) matches(protocols []Protocol) bool {
	if len(m.protocols) != len(protocols) {
		return false
	}
	for i := range protocols {
		if m.protocols[i].Name != protocols[i].Name || string(m.protocols[i].Metadata) != string(protocols[i].Metadata) {
			return false
		}
	}
	return true
}

func (m *member) bytes() (n int) {
	for i := range m.protocols {
		n += len(m.protocols[i].Name) + len(m.protocols[i].Metadata)
	}
	return n
}

// expired says whether the member has to go. Members that wait are alive by
// that; only a first join that waits too long is given up, since its client
// may be gone without ever having learnt its member id.
func (m *member) expired(now time.Time) bool {
	if !m.isNew && (m.join != 0 || m.sync != 0) {
		return false
	}
	return !m.deadline.After(now)
}

// group is a classic consumer group and its offsets.
type group struct {
	id           string
	state        State
	since        time.Time // of the state; zero if unknown
	generation   int32
	protocolType string
	protocol     string
	leader       string
	reason       string

	members     map[string]*member
	first, last *member
	statics     map[string]*member   // by instance id
	pending     map[string]time.Time // ids given out but not yet joined with: until when
	supports    map[string]int       // protocol name: members that offer it
	awaiting    int                  // members whose join waits
	pendingSync int                  // members that must still sync
	bytes       int                  // of all members' metadata

	initial   bool // the first rebalance from Empty, which waits for more members
	newMember bool // one was added since the delay was last extended
	delay     time.Duration
	remaining time.Duration // how far the delay may still be extended
	joinBy    time.Time     // the join phase ends; zero: no timer
	syncBy    time.Time     // the sync phase ends; zero: no timer
	storing   WriteID       // the write of this generation's assignment, or 0

	subscribed map[string]struct{} // topics of the members; nil: not known

	offsets map[string]map[int32]offset
	flying  map[string]map[int32]int // commits not yet written
	stored  bool                     // the log has a metadata record
	writes  int                      // not yet reported as written

	wake time.Time // in the heap of timers
	heap int       // its place there, or -1
}

func newGroup(id string) *group {
	return &group{id: id, members: map[string]*member{}, heap: -1}
}

func (g *group) to(s State, now time.Time) { g.state, g.since = s, now }

// list returns the members in the order of joining.
func (g *group) list() []*member {
	all := make([]*member, 0, len(g.members))
	for m := g.first; m != nil; m = m.next {
		all = append(all, m)
	}
	return all
}

func (g *group) add(m *member) {
	if len(g.members) == 0 {
		g.leader = m.id
	}
	g.members[m.id] = m
	if m.instance != "" {
		if g.statics == nil {
			g.statics = map[string]*member{}
		}
		g.statics[m.instance] = m
	}
	m.prev, m.next = g.last, nil
	if g.last == nil {
		g.first = m
	} else {
		g.last.next = m
	}
	g.last = m
	g.count(m, 1)
	delete(g.pending, m.id)
}

// count adds the member's protocols to the sums, or takes them out.
func (g *group) count(m *member, by int) {
	if g.supports == nil {
		g.supports = map[string]int{}
	}
	for i := range m.protocols {
		name := m.protocols[i].Name
		if g.supports[name] += by; g.supports[name] == 0 {
			delete(g.supports, name)
		}
	}
	g.bytes += by * m.bytes()
}

// remove takes a member out; the caller has answered its requests.
func (g *group) remove(m *member) {
	delete(g.members, m.id)
	if m.instance != "" {
		delete(g.statics, m.instance)
	}
	if m.prev == nil {
		g.first = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		g.last = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.prev, m.next = nil, nil
	g.count(m, -1)
	if m.join != 0 {
		m.join = 0
		g.awaiting--
	}
	g.synced(m)
	if g.leader == m.id {
		g.leader = ""
		if g.first != nil {
			g.leader = g.first.id
		}
	}
}

func (g *group) synced(m *member) {
	if m.pendingSync {
		m.pendingSync = false
		g.pendingSync--
	}
}

func (g *group) allJoined() bool {
	return len(g.members) == g.awaiting && len(g.pending) == 0
}

func (g *group) rebalanceTimeout() (d time.Duration) {
	for m := g.first; m != nil; m = m.next {
		d = max(d, m.rebalance)
	}
	return d
}

// accepts says whether one of the protocols is offered by all members.
func (g *group) accepts(protocolType string, protocols []Protocol) bool {
	if g.state == Empty || len(g.members) == 0 {
		return protocolType != "" && len(protocols) > 0
	}
	if protocolType != g.protocolType {
		return false
	}
	for i := range protocols {
		if g.supports[protocols[i].Name] == len(g.members) {
			return true
		}
	}
	return false
}

// vote chooses the protocol that most members prefer among those that all
// offer. The leader's order decides between equals.
func (g *group) vote() string {
	votes := map[string]int{}
	for m := g.first; m != nil; m = m.next {
		for i := range m.protocols {
			if name := m.protocols[i].Name; g.supports[name] == len(g.members) {
				votes[name]++
				break
			}
		}
	}
	best := ""
	for _, p := range g.members[g.leader].protocols {
		if votes[p.Name] > votes[best] {
			best = p.Name
		}
	}
	return best
}

// check finds a member by its ids and fences old holders of an instance id.
func (g *group) check(memberID, instance string) (*member, error) {
	if instance != "" {
		m := g.statics[instance]
		if m == nil {
			return nil, ErrUnknownMemberID
		}
		if m.id != memberID {
			return nil, ErrFencedInstanceID
		}
	}
	m := g.members[memberID]
	if m == nil {
		return nil, ErrUnknownMemberID
	}
	return m, nil
}

// electJoined makes sure that the leader is among those that joined. It is
// false if nobody joined.
func (g *group) electJoined() bool {
	if m := g.members[g.leader]; m != nil && m.join != 0 {
		return true
	}
	for m := g.first; m != nil; m = m.next {
		if m.join != 0 {
			g.leader = m.id
			return true
		}
	}
	return false
}

// ConsumerType is the protocol type of consumers; their metadata names topics.
const ConsumerType = "consumer"

// subscribe works out the topics that the members consume, if they can be
// known: the protocol type is the consumers' and all metadata parses.
func (g *group) subscribe() {
	g.subscribed = nil
	if g.protocolType != ConsumerType {
		return
	}
	topics := map[string]struct{}{}
	for m := g.first; m != nil; m = m.next {
		if !subscription(m.metadata(g.protocol), topics) {
			return
		}
	}
	g.subscribed = topics
}

func (g *group) subscribedTo(topic string) bool {
	if g.subscribed == nil {
		return g.protocolType == ConsumerType
	}
	_, ok := g.subscribed[topic]
	return ok
}

// subscription adds the topics of a consumer's metadata to a set. Only the
// fields of version 0 are read, which all versions begin with.
func subscription(b []byte, into map[string]struct{}) bool {
	if len(b) < 6 || b[0]&0x80 != 0 {
		return false
	}
	n := int32(uint32(b[2])<<24 | uint32(b[3])<<16 | uint32(b[4])<<8 | uint32(b[5]))
	b = b[6:]
	for ; n > 0; n-- {
		if len(b) < 2 {
			return false
		}
		size := int(b[0])<<8 | int(b[1])
		if b = b[2:]; len(b) < size {
			return false
		}
		into[string(b[:size])] = struct{}{}
		b = b[size:]
	}
	return n == 0
}
