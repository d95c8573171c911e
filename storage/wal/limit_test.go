package wal

import "testing"

// A pool gives memory back when its bound is lowered: free chunks at once, others when they are released.
func TestPoolSetLimit(t *testing.T) {
	p := NewPool(16 * ChunkSize)
	defer p.Close()
	var cs []*Chunk
	for range 12 {
		c, err := p.Get(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	for _, c := range cs[:4] {
		c.Release()
	}
	p.SetLimit(6 * ChunkSize)
	p.wg.Wait() // a chunk that was being made ready ahead
	if inUse, mapped, limit := p.Usage(); inUse != 8*ChunkSize || mapped != 8*ChunkSize || limit != 6*ChunkSize {
		t.Errorf("%d in use, %d mapped of %d", inUse, mapped, limit)
	}
	if c := p.TryGet(1); c != nil {
		t.Error("a chunk beyond the bound")
	}
	for _, c := range cs[4:] {
		c.Release()
	}
	if inUse, mapped, _ := p.Usage(); inUse != 0 || mapped != 6*ChunkSize {
		t.Errorf("%d in use, %d mapped", inUse, mapped)
	}
}
