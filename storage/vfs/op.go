package vfs

import "fmt"

// OpKind names an operation of FS or File, for the hook of Mem and the rules of Fault.
type OpKind uint8

// The kinds of operations. OpAny matches every one in a Rule.
const (
	OpAny         OpKind = iota
	OpOpen               // Open of a file that is there, not emptying it
	OpCreate             // Open or Lock that makes a file, or empties it
	OpRead               // File.ReadAt
	OpWrite              // File.WriteAt
	OpSync               // File.Sync
	OpTruncate           // File.Truncate
	OpPreallocate        // Preallocator.Preallocate
	OpSize               // File.Size
	OpClose              // File.Close
	OpRemove             // FS.Remove
	OpRename             // FS.Rename
	OpLink               // FS.Link
	OpStat               // FS.Stat
	OpLock               // FS.Lock
	OpMkdir              // FS.MkdirAll
	OpList               // FS.List
	OpSyncDir            // FS.SyncDir
	OpRemoveAll          // FS.RemoveAll
	OpUsage              // FS.Usage
	opKinds
)

// String returns the operation's name.
func (k OpKind) String() string {
	names := [...]string{"any", "open", "create", "read", "write", "sync", "truncate", "preallocate", "size", "close",
		"remove", "rename", "link", "stat", "lock", "mkdir", "list", "syncdir", "removeall", "usage"}
	if k >= opKinds {
		return fmt.Sprintf("op(%d)", uint8(k))
	}
	return names[k]
}

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

// Op is one operation, as told to the hook of Mem.
type Op struct {
	Kind  OpKind
	Phase Phase
	// Path is the file or directory; of Rename and Link the old name.
	Path string
	// NewPath is the new name of Rename and Link.
	NewPath string
	// Off and Len are the range of a write in bytes; Off is the new size of Truncate.
	Off, Len int64
}

// String returns the operation in one line.
func (o Op) String() string {
	s := fmt.Sprintf("%s %s %s", [...]string{"before", "middle of", "after"}[o.Phase], o.Kind, o.Path)
	switch {
	case o.NewPath != "":
		return s + " -> " + o.NewPath
	case o.Kind == OpWrite:
		return fmt.Sprintf("%s [%d,%d)", s, o.Off, o.Off+o.Len)
	case o.Kind == OpTruncate || o.Kind == OpPreallocate:
		return fmt.Sprintf("%s to %d", s, o.Off)
	}
	return s
}
