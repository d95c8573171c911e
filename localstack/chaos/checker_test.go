package chaos

import (
	"bytes"
	"slices"
	"testing"
)

func TestCheckerGood(t *testing.T) {
	v := check(goodHistory())
	if !v.OK() {
		t.Fatal(v.Examples)
	}
	const all = plantedPartitions * plantedRecords
	if v.Records != all || v.Acked != all-plantedPartitions || v.Unknown != 2*plantedPartitions || v.Kept != plantedPartitions {
		t.Errorf("%+v", v)
	}
	if v.Reads[libraryNames[Franz]] != all || v.Reads[libraryNames[Librdkafka]] != all || v.Commits != 2*all/10 || v.Asked != 2*all/10 {
		t.Errorf("%+v", v)
	}
}

// Each planted fault is found, for what it is.
func TestCheckerFindsPlanted(t *testing.T) {
	for _, p := range allPlanted() {
		t.Run(p.what, func(t *testing.T) {
			v := check(p.plant(goodHistory()))
			if v.Broken[p.finds] == 0 {
				t.Errorf("not found: %v, %v", v.Broken, v.Examples)
			}
			if len(v.Examples) == 0 {
				t.Error("it is not told")
			}
		})
	}
	for _, v := range violations {
		if !slices.ContainsFunc(allPlanted(), func(p planted) bool { return p.finds == v }) {
			t.Errorf("nothing is planted for %q", v)
		}
	}
}

// A question that was asked before a commit may be told what was before.
func TestCheckerAsksInTime(t *testing.T) {
	c := NewChecker(1)
	for _, e := range []Event{{Kind: Asked, Record: Record{Seq: 1}}, {Kind: Committed, Offset: 10}, {Kind: Told, Offset: 5, Record: Record{Seq: 1}}} {
		c.Add(e)
	}
	if c.Broken() > 0 {
		t.Errorf("%v", c.v.Examples)
	}
}

func TestHistoryIsKept(t *testing.T) {
	want := goodHistory()
	var b []byte
	for _, e := range want {
		b = e.encode(b)
	}
	var got []Event
	if err := EachEvent(bytes.NewReader(b[:len(b)-1]), func(e Event) error { got = append(got, e); return nil }); err != nil || !slices.Equal(got, want[:len(want)-1]) {
		t.Errorf("%d events of %d, %v", len(got), len(want), err)
	}
	if len(b) != eventSize*len(want) {
		t.Errorf("%d bytes", len(b))
	}
}

func TestParseRecord(t *testing.T) {
	key, value := recordKey(3, 7), recordValue(Record{3, 9}, 7, []byte("filler"))
	if r, err := parseRecord(7, key, value); err != nil || r != (Record{3, 9}) {
		t.Errorf("%v, %v", r, err)
	}
	for _, bad := range []struct {
		partition  int32
		key, value []byte
	}{{8, key, value}, {7, nil, value}, {7, key, value[:11]}} {
		if _, err := parseRecord(bad.partition, bad.key, bad.value); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
