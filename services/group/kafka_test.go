package group

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestKafkaLog reads what Apache Kafka has written, and writes the same bytes
// from what it has read.
func TestKafkaLog(t *testing.T) {
	f, err := os.Open("testdata/kafka-4.3.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := newRig(t, nil)
	last := map[string][]byte{} // the newest value of each key
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if fields[0] == "#" {
			continue
		}
		k, _ := hex.DecodeString(fields[1])
		v, _ := hex.DecodeString(fields[2])
		if fields[2] == "-" {
			v = nil
		}
		last[string(k)] = v
		r.log = append(r.log, Record{k, v})
		name := string(k[4 : 4+int(k[3])])
		if p := PartitionFor(name, 50); strconv.Itoa(int(p)) != fields[0] {
			t.Errorf("group %q in partition %d, Kafka has it in %s", name, p, fields[0])
		}
	}
	r.load()

	if got := r.c.List(nil, nil); len(got) != 3 || got[0] != (Listed{"emptied", ConsumerType, Empty}) ||
		got[1] != (Listed{"golden", ConsumerType, Stable}) || got[2] != (Listed{"simple", "", Empty}) {
		t.Errorf("%+v", got)
	}
	d, _ := r.c.Describe("golden")
	if d.Generation != 3 || d.Protocol != "cooperative-sticky" || len(d.Members) != 2 || !strings.HasPrefix(d.Leader, "client-a-") {
		t.Errorf("%+v", d)
	}
	for _, m := range d.Members {
		if err := r.c.Heartbeat(HeartbeatRequest{"golden", m.MemberID, m.InstanceID, 3}, r.now); err != nil {
			t.Errorf("heartbeat of %q: %v", m.MemberID, err)
		}
		static := strings.HasPrefix(m.MemberID, "instance-b-")
		if m.ClientHost != "/127.0.0.1" || static != (m.ClientID == "client-b") || static != (m.InstanceID == "instance-b") || len(m.Assignment) == 0 {
			t.Errorf("%+v", m)
		}
		if g := r.c.groups["golden"]; g.members[m.MemberID].session != 45*time.Second || g.members[m.MemberID].rebalance != time.Minute {
			t.Errorf("timeouts %v, %v", g.members[m.MemberID].session, g.members[m.MemberID].rebalance)
		}
	}
	if g := r.c.groups["golden"]; !g.subscribedTo("orders") || g.subscribedTo("others") {
		t.Error("the subscription is not known")
	}
	for p, want := range []int64{10, 10, 10} {
		got := r.c.FetchOffsets(FetchRequest{GroupID: "golden", Topics: []TopicPartitions{{Name: "orders", Partitions: []int32{int32(p)}}}})
		if got[0].Partitions[0].Offset != want || got[0].Partitions[0].LeaderEpoch != 0 {
			t.Errorf("partition %d: %+v", p, got)
		}
	}
	if got := r.c.FetchOffsets(FetchRequest{GroupID: "simple"})[0].Partitions[0]; got.Offset != 7 || got.Metadata != "by hand" {
		t.Errorf("%+v", got)
	}

	same := 0
	for id, g := range r.c.groups {
		if g.stored {
			same += compareBytes(t, g.record(nil), last)
		}
		for topic, ps := range g.offsets {
			for p, o := range ps {
				same += compareBytes(t, offsetRecord(id, key{topic, p}, &o), last)
			}
		}
	}
	if same != 6 { // two groups, four offsets
		t.Errorf("compared %d records", same)
	}
}

func compareBytes(t *testing.T, rec Record, last map[string][]byte) int {
	t.Helper()
	if want, ok := last[string(rec.Key)]; !ok || !bytes.Equal(rec.Value, want) {
		t.Errorf("key %x:\n%x, Kafka wrote\n%x", rec.Key, rec.Value, want)
	}
	return 1
}
