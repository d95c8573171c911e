package vfs

import "fmt"

// EventKind names an operation that changes files, directories or what of them
// is durable.
type EventKind string

// The kinds of events.
const (
	EventCreate      EventKind = "create" // Open or Lock that makes a file, or empties it
	EventWrite       EventKind = "write"
	EventSync        EventKind = "sync"
	EventTruncate    EventKind = "truncate"
	EventPreallocate EventKind = "preallocate"
	EventRemove      EventKind = "remove"
	EventRename      EventKind = "rename"
	EventLink        EventKind = "link"
	EventMkdir       EventKind = "mkdir"
	EventSyncDir     EventKind = "syncdir"
	EventRemoveAll   EventKind = "removeall"
)

// Phase is the moment of an operation at which Mem calls its hook.
type Phase uint8

const (
	// Before: nothing of the operation has happened.
	Before Phase = iota
	// Middle: a write with Dsync is under way: any part of it may survive a crash.
	Middle
	// After: the operation is done and about to return.
	After
)

// Event is one operation, as told to the hook of Mem.
type Event struct {
	Kind  EventKind
	Phase Phase
	// Path is the file or directory; of Rename and Link the old name.
	Path string
	// NewPath is the new name of Rename and Link.
	NewPath string
	// Off and Len are the range of a write in bytes; Off is the new size of
	// Truncate and Preallocate.
	Off, Len int64
}

// String returns the event in one line.
func (e Event) String() string {
	s := fmt.Sprintf("%s %s %s", [...]string{"before", "middle of", "after"}[e.Phase], e.Kind, e.Path)
	switch e.Kind {
	case EventRename, EventLink:
		return s + " -> " + e.NewPath
	case EventWrite:
		return fmt.Sprintf("%s [%d,%d)", s, e.Off, e.Off+e.Len)
	case EventTruncate, EventPreallocate:
		return fmt.Sprintf("%s to %d", s, e.Off)
	}
	return s
}
