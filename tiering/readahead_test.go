package tiering

import "testing"

// A replay leaves the disk cache as it is; what is replayed again is kept, and
// comes from there the third time.
func TestReplayIsKeptTheSecondTime(t *testing.T) {
	r := newReadRig(t, 40, func(o *ReaderOptions) { o.ReadAhead, o.MemoryBytes = 8*testBlock, 32*testBlock })
	blocks := int64(len(r.log) / testBlock)
	var files []int
	var loads, disk []int64
	for range 3 {
		before := r.Stats()
		r.checkAll(t, 8_000)
		waitFor(t, "read-ahead to end", func() bool { r.blocks.mu.Lock(); defer r.blocks.mu.Unlock(); return len(r.blocks.flights) == 0 })
		s := r.Stats()
		files, loads, disk = append(files, s.CacheFiles), append(loads, s.BlockLoads-before.BlockLoads), append(disk, s.DiskHits-before.DiskHits)
	}
	t.Logf("%d blocks; files after each pass %d, loads %d, from disk %d", blocks, files, loads, disk)
	if int64(files[0]) > blocks/4 || int64(files[1]) < blocks*3/4 || disk[2] < loads[2]*3/4 {
		t.Errorf("%d blocks; files after each pass %d, loads %d, from disk %d", blocks, files, loads, disk)
	}
}

// What several sequential readers read ahead does not push out what was read
// ahead and is not used yet: each block is loaded about once.
func TestReadAheadIsUsed(t *testing.T) {
	r := newReadRig(t, 40, func(o *ReaderOptions) { o.ReadAhead, o.MemoryBytes = 8*testBlock, 32*testBlock })
	blocks := int64(len(r.log) / testBlock)
	const readers = 4
	var at [readers]int64
	for i := range at {
		at[i] = r.end / readers * int64(i)
	}
	for left := readers; left > 0; {
		for i := range at {
			if end := r.end / readers * int64(i+1); at[i] >= end {
				continue
			}
			res, err := r.Read(t.Context(), testTP, at[i], 8_000, true)
			if err != nil {
				t.Fatal(err)
			}
			res.Release()
			if at[i] = res.NextOffset; at[i] >= r.end/readers*int64(i+1) {
				left--
			}
		}
	}
	s := r.Stats()
	t.Logf("%d blocks, %d loads, %d ahead", blocks, s.BlockLoads, s.AheadLoads)
	if s.BlockLoads > blocks*3/2 || s.AheadLoads < blocks/3 {
		t.Errorf("%d blocks, %d loads, %d ahead", blocks, s.BlockLoads, s.AheadLoads)
	}
}
