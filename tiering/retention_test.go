package tiering

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cirrolog/cirrolog/storage/ids"
)

func row(base, last, bytes, ts int64) Segment {
	return Segment{SegmentKey: SegmentKey{Base: base, Last: last, Epoch: 1, Incarnation: "A"}, LogSize: bytes, Size: bytes + 100, MaxTimestamp: ts}
}

func seg(base, last, bytes, ts int64) LocalRange {
	return LocalRange{Base: base, Last: last, Bytes: bytes, MaxTimestamp: ts}
}

func active(base, last, bytes, ts int64) LocalRange {
	l := seg(base, last, bytes, ts)
	l.Active = true
	return l
}

func TestRetain(t *testing.T) {
	never := RetentionConfig{Unlimited, Unlimited, AsTotal, AsTotal, true}
	cfg := func(f func(*RetentionConfig)) RetentionConfig {
		c := never
		f(&c)
		return c
	}
	tests := []struct {
		name  string
		cfg   RetentionConfig
		state RetentionState
		start int64
		drop  []int64
	}{
		{"nothing set", never,
			RetentionState{Now: 1e12, Tiered: []Segment{row(0, 9, 100, 1)}, Local: []LocalRange{seg(0, 9, 100, 1), active(10, 12, 30, 2)}}, 0, nil},
		{"empty partition", cfg(func(c *RetentionConfig) { c.RetentionMs, c.RetentionBytes = 0, 0 }),
			RetentionState{Now: 1000}, 0, nil},
		{"old segments go", cfg(func(c *RetentionConfig) { c.RetentionMs = 100; c.LocalRetentionMs = 100 }),
			RetentionState{Now: 1000, Local: []LocalRange{seg(0, 9, 10, 899), seg(10, 19, 10, 900), active(20, 25, 5, 1)}}, 10, []int64{0}},
		{"exactly the limit stays", cfg(func(c *RetentionConfig) { c.RetentionMs = 100 }),
			RetentionState{Now: 1000, Local: []LocalRange{seg(0, 9, 10, 900), active(10, 9, 0, -1)}}, 0, nil},
		{"a young segment shields what follows", cfg(func(c *RetentionConfig) { c.RetentionMs = 100 }),
			RetentionState{Now: 1000, Local: []LocalRange{seg(0, 9, 10, 5000), seg(10, 19, 10, 1), active(20, 19, 0, -1)}}, 0, nil},
		{"active does not go", cfg(func(c *RetentionConfig) { c.RetentionMs = 0; c.RetentionBytes = 0 }),
			RetentionState{Now: 1000, Local: []LocalRange{seg(0, 9, 10, 1), active(10, 19, 1000, 1)}}, 10, []int64{0}},
		{"unknown timestamp counts from modification", cfg(func(c *RetentionConfig) { c.RetentionMs = 100 }),
			RetentionState{Now: 1000, Local: []LocalRange{{Base: 0, Last: 9, MaxTimestamp: -1, Modified: 950}, active(10, 9, 0, -1)}}, 0, nil},
		{"by size keeps at least the limit", cfg(func(c *RetentionConfig) { c.RetentionBytes = 25 }),
			RetentionState{Now: 1, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), seg(20, 29, 10, 1), active(30, 34, 5, 1)}}, 10, []int64{0}},
		{"by size exact", cfg(func(c *RetentionConfig) { c.RetentionBytes = 15 }),
			RetentionState{Now: 1, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), seg(20, 29, 10, 1), active(30, 34, 5, 1)}}, 20, []int64{0, 10}},
		{"total over both tiers counts overlap once", cfg(func(c *RetentionConfig) { c.RetentionBytes = 20; c.LocalRetentionBytes = Unlimited }),
			RetentionState{Now: 1, Tiered: []Segment{row(0, 9, 10, 1), row(10, 19, 10, 1)}, Local: []LocalRange{seg(10, 19, 10, 1), active(20, 24, 10, 1)}}, 10, nil},
		{"tiered segment expires by age", cfg(func(c *RetentionConfig) { c.RetentionMs = 100; c.LocalRetentionMs = Unlimited }),
			RetentionState{Now: 1000, Tiered: []Segment{row(0, 9, 10, 1), row(10, 19, 10, 950)}, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 950), active(20, 19, 0, -1)}}, 10, []int64{0}},
		{"local retention drops tiered local data only", cfg(func(c *RetentionConfig) { c.LocalRetentionMs = 0 }),
			RetentionState{Now: 1000, Tiered: []Segment{row(0, 9, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), active(20, 19, 0, -1)}}, 0, []int64{0}},
		{"untiered data shields what follows it", cfg(func(c *RetentionConfig) { c.LocalRetentionBytes = 0 }),
			RetentionState{Now: 1000, Tiered: []Segment{row(10, 19, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), active(20, 19, 0, -1)}}, 0, nil},
		{"partly tiered stays", cfg(func(c *RetentionConfig) { c.LocalRetentionMs = 0 }),
			RetentionState{Now: 1000, Tiered: []Segment{row(0, 8, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), active(10, 9, 0, -1)}}, 0, nil},
		{"tiered by two rows with other boundaries", cfg(func(c *RetentionConfig) { c.LocalRetentionMs = 0 }),
			RetentionState{Now: 1000, Tiered: []Segment{row(0, 4, 10, 1), row(5, 12, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), active(10, 9, 0, -1)}}, 0, []int64{0}},
		{"untiered part below log start does not matter", cfg(func(c *RetentionConfig) { c.LocalRetentionMs = 0 }),
			RetentionState{Now: 1000, LogStart: 5, Tiered: []Segment{row(5, 9, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), active(10, 9, 0, -1)}}, 5, []int64{0}},
		{"local limit as total", cfg(func(c *RetentionConfig) { c.RetentionBytes = 30 }),
			RetentionState{Now: 1, Tiered: []Segment{row(0, 9, 10, 1), row(10, 19, 10, 1)}, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), active(20, 24, 15, 1)}}, 0, nil},
		{"without remote no local limit", RetentionConfig{Unlimited, Unlimited, 0, 0, false},
			RetentionState{Now: 1000, Local: []LocalRange{seg(0, 9, 10, 1), active(10, 9, 0, -1)}}, 0, nil},
		{"without remote rows do not count", RetentionConfig{Unlimited, 10, AsTotal, AsTotal, false},
			RetentionState{Now: 1000, Tiered: []Segment{row(0, 9, 1000, 1)}, Local: []LocalRange{seg(10, 19, 10, 1), active(20, 19, 0, -1)}}, 0, nil},
		{"below log start goes even when no limit is set", never,
			RetentionState{Now: 1, LogStart: 10, Local: []LocalRange{seg(0, 9, 10, 1), seg(10, 19, 10, 1), active(20, 19, 0, -1)}}, 10, []int64{0}},
		{"log start never goes back", cfg(func(c *RetentionConfig) { c.RetentionMs = 100 }),
			RetentionState{Now: 1000, LogStart: 15, Tiered: []Segment{row(0, 9, 10, 1)}, Local: []LocalRange{active(20, 19, 0, -1)}}, 15, nil},
		{"higher generation counts, not what it hides", cfg(func(c *RetentionConfig) { c.RetentionBytes = 20; c.LocalRetentionBytes = Unlimited }),
			RetentionState{Now: 1, Tiered: []Segment{row(0, 9, 100, 1), {SegmentKey: SegmentKey{Base: 0, Last: 9, Generation: 1}, LogSize: 5}, row(10, 19, 10, 1)}, Local: []LocalRange{active(20, 24, 5, 1)}}, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Retain(tt.cfg, tt.state)
			if got.LogStart != tt.start || !slices.Equal(got.DropLocal, tt.drop) {
				t.Errorf("Retain = start %d, drop %v; want %d, %v", got.LogStart, got.DropLocal, tt.start, tt.drop)
			}
		})
	}
}

func TestRetainRolls(t *testing.T) {
	const never = Unlimited
	tests := []struct {
		name      string
		ms, bytes int64
		local     []LocalRange
		want      bool
	}{
		{"old", 100, never, []LocalRange{active(0, 9, 10, 899)}, true},
		{"old, all before it too", 100, never, []LocalRange{seg(0, 9, 10, 1), active(10, 19, 10, 899)}, true},
		{"not old enough", 100, never, []LocalRange{active(0, 9, 10, 900)}, false},
		{"kept by what is before it", 100, never, []LocalRange{seg(0, 9, 10, 950), active(10, 19, 10, 1)}, false},
		{"empty", 0, 0, []LocalRange{active(0, -1, 0, -1)}, false},
		{"no limit", never, never, []LocalRange{active(0, 9, 10, 1)}, false},
		{"at the size", never, 10, []LocalRange{active(0, 9, 10, 1)}, false},
		{"larger than the size by less than itself", never, 1, []LocalRange{active(0, 9, 10, 1)}, false},
		{"nothing may stay", never, 0, []LocalRange{seg(0, 9, 10, 1), active(10, 19, 10, 1)}, true},
		{"already closed", 0, 0, []LocalRange{seg(0, 9, 10, 1)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Retain(RetentionConfig{tt.ms, tt.bytes, AsTotal, AsTotal, true}, RetentionState{Now: 1000, Local: tt.local})
			if got.Roll != tt.want {
				t.Errorf("Roll = %t, want %t", got.Roll, tt.want)
			}
			if last := tt.local[len(tt.local)-1]; last.Active && got.LogStart > last.Base {
				t.Errorf("the log start is %d, the active segment begins at %d", got.LogStart, last.Base)
			}
		})
	}
}

// What retention gives up is a prefix, the active segment survives, local
// copies go only with the bytes in the bucket or below the log start.
func TestRetainProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := RetentionConfig{
			RetentionMs: rapid.Int64Range(-1, 50).Draw(t, "ms"), RetentionBytes: rapid.Int64Range(-1, 200).Draw(t, "bytes"),
			LocalRetentionMs: rapid.Int64Range(-2, 50).Draw(t, "localMs"), LocalRetentionBytes: rapid.Int64Range(-2, 200).Draw(t, "localBytes"),
			Remote: rapid.Bool().Draw(t, "remote"),
		}
		s := RetentionState{Now: 100, LogStart: rapid.Int64Range(0, 60).Draw(t, "start")}
		base := int64(0)
		var in ranges
		for i := range rapid.IntRange(1, 8).Draw(t, "n") {
			last := base + rapid.Int64Range(0, 9).Draw(t, "len")
			bytes, ts := rapid.Int64Range(0, 60).Draw(t, "size"), rapid.Int64Range(-1, 120).Draw(t, "ts")
			if rapid.Bool().Draw(t, "tiered") && c.Remote {
				s.Tiered = append(s.Tiered, row(base, last, bytes, ts))
				in.add(base, last)
			}
			if i > 2 || rapid.Bool().Draw(t, "local") {
				s.Local = append(s.Local, seg(base, last, bytes, ts))
			}
			base = last + 1
		}
		s.Local = append(s.Local, active(base, base+3, 10, 1))
		before := fmt.Sprint(s)
		p := Retain(c, s)
		if fmt.Sprint(s) != before {
			t.Fatal("arguments changed")
		}
		if p.LogStart < s.LogStart || p.LogStart > max(base, s.LogStart) {
			t.Fatalf("log start %d outside [%d, %d]", p.LogStart, s.LogStart, base)
		}
		if c.RetentionMs < 0 && c.RetentionBytes < 0 && p.LogStart != s.LogStart {
			t.Fatal("log start moved without a limit")
		}
		for i, b := range p.DropLocal {
			l := s.Local[i]
			if l.Base != b {
				t.Fatalf("drops %v, not a prefix of %v", p.DropLocal, s.Local)
			}
			if l.Active || l.Last >= p.LogStart && (!c.Remote || !in.hold(max(l.Base, p.LogStart), l.Last)) {
				t.Fatalf("drops %+v, which is nowhere else", l)
			}
		}
	})
}

// Until TieredUntil nothing goes, whatever comes behind what there is and whatever leaves the disk, while KeepsLocal.
func TestTieredUntil(t *testing.T) {
	spared := 0
	rapid.Check(t, func(t *rapid.T) {
		c := RetentionConfig{
			RetentionMs: rapid.Int64Range(-1, 50).Draw(t, "ms"), RetentionBytes: rapid.Int64Range(-3, 200).Draw(t, "bytes"),
			LocalRetentionMs: rapid.Int64Range(-2, 50).Draw(t, "localMs"), LocalRetentionBytes: rapid.Int64Range(-2, 400).Draw(t, "localBytes"),
			Remote: rapid.Bool().Draw(t, "remote"),
		}
		s := RetentionState{Now: 100, LogStart: rapid.Int64Range(0, 20).Draw(t, "start")}
		base := int64(0)
		grow := func(from int) {
			for range rapid.IntRange(from, 4).Draw(t, "n") {
				last := base + rapid.Int64Range(0, 9).Draw(t, "len")
				bytes, ts := rapid.Int64Range(0, 60).Draw(t, "size"), rapid.Int64Range(-1, 160).Draw(t, "ts")
				if rapid.Bool().Draw(t, "tiered") {
					s.Tiered = append(s.Tiered, row(base, last, bytes, ts))
				}
				s.Local = append(s.Local, seg(base, last, bytes, ts))
				base = last + 1
			}
		}
		grow(1)
		until := TieredUntil(c, s)
		grow(0)
		s.Now += rapid.Int64Range(0, 60).Draw(t, "later")
		s.Local = s.Local[rapid.IntRange(0, len(s.Local)).Draw(t, "dropped"):]
		s.Local = append(s.Local, active(base, base+3, 10, 1))
		if s.Now > until || !KeepsLocal(c, s) {
			return
		}
		spared++
		if p := Retain(c, s); p.LogStart != s.LogStart || len(p.DropLocal) > 0 || p.Roll {
			t.Fatalf("%+v asks for %+v of %+v before %d", c, p, s, until)
		}
	})
	if spared == 0 {
		t.Error("the rows are never spared")
	}
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ranges
		var has [64]bool
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			lo := rapid.Int64Range(0, 60).Draw(t, "lo")
			hi := min(63, lo+rapid.Int64Range(0, 9).Draw(t, "len"))
			r.add(lo, hi)
			for i := lo; i <= hi; i++ {
				has[i] = true
			}
		}
		for lo := range has {
			all := true
			for hi := lo; hi < len(has); hi++ {
				all = all && has[hi]
				if r.hold(int64(lo), int64(hi)) != all {
					t.Fatalf("hold(%d, %d) = %v in %v", lo, hi, !all, r)
				}
			}
		}
	})
}

func TestChoose(t *testing.T) {
	k := func(base, last int64, epoch int32, gen int64) Segment {
		return Segment{SegmentKey: SegmentKey{Base: base, Last: last, Epoch: epoch, Generation: gen, Incarnation: ids.Incarnation(fmt.Sprint(epoch))}}
	}
	rows := []Segment{k(0, 99, 1, 0), k(50, 149, 2, 0), k(20, 59, 2, 1), k(200, 299, 3, 0)}
	tests := []struct {
		offset int64
		want   SegmentKey
		until  int64
		ok     bool
	}{
		{0, rows[0].SegmentKey, 20, true},
		{20, rows[2].SegmentKey, 60, true},
		{59, rows[2].SegmentKey, 60, true},
		{60, rows[1].SegmentKey, 150, true},
		{149, rows[1].SegmentKey, 150, true},
		{150, SegmentKey{}, 0, false},
		{200, rows[3].SegmentKey, 300, true},
		{300, SegmentKey{}, 0, false},
	}
	for _, tt := range tests {
		got, until, ok := choose(rows, tt.offset)
		if ok != tt.ok || ok && (got.SegmentKey != tt.want || until != tt.until) {
			t.Errorf("choose(%d) = %v until %d, %v; want %v until %d, %v", tt.offset, got.SegmentKey, until, ok, tt.want, tt.until, tt.ok)
		}
	}
	if w := winners(rows); !reflect.DeepEqual(w, []Segment{rows[2], rows[0], rows[1], rows[3]}) {
		t.Errorf("winners = %v", w)
	}
	if w := winners([]Segment{k(0, 9, 1, 0), k(0, 9, 1, 3), k(10, 19, 1, 0)}); len(w) != 2 || w[0].Generation != 3 {
		t.Errorf("winners = %v, want the rewrite and the next one", w)
	}
}
