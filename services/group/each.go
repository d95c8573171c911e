package group

import "time"

// Committed is a committed offset of a group.
type Committed struct {
	GroupID, Topic string
	TopicID        TopicID // zero: not known
	Partition      int32
	Offset         int64
	CommitTime     time.Time
	Members        int // of the group
}

// Offsets yields all committed offsets, those of a group together, in no other
// order, until yield returns false. It copies nothing; yield must not call the
// coordinator.
func (c *Coordinator) Offsets(yield func(Committed) bool) {
	for _, g := range c.groups {
		if g.state == Dead {
			continue
		}
		for topic, t := range g.offsets {
			for p, o := range t {
				if !yield(Committed{GroupID: g.id, Topic: topic, TopicID: o.topicID, Partition: p, Offset: o.offset,
					CommitTime: time.UnixMilli(o.commit), Members: len(g.members)}) {
					return
				}
			}
		}
	}
}
