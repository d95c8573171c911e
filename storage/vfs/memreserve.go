package vfs

// Reserve implements Reserver.
func (f *memFile) Reserve(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.checkLocked("reserve", true); err != nil {
		return err
	}
	more := max(size-f.node.charged(), 0)
	if err := f.fs.roomLocked(more); err != nil {
		return pathErr("reserve", f.name, err)
	}
	f.fs.used += more
	f.node.reserved = max(f.node.reserved, size)
	return nil
}
