package metadata

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// TestGolden reads every kind of object and row as an earlier program wrote it, and writes the same. A line of the
// file is a key, a tab and a value, which ends in its newline.
func TestGolden(t *testing.T) {
	const inc, by = ids.Incarnation("01M7YNX4NQ47ZE5QSPHCVH7RE0"), ids.Incarnation("01M7YNX4NQ47ZE5QSPHCVH7RE1")
	id := ids.TopicID{1, 2, 3}
	tp := ids.TopicPartition{Topic: id, Partition: 7}
	segment := SegmentID{Base: 100, Last: 299, Epoch: 3, Incarnation: inc, Generation: 2}
	topic := &topicRecord{Format: 1, Version: 12, Op: opConfig, Name: "orders", ID: id.String(), Partitions: 3, Configs: map[string]string{"retention.ms": "5000", "cleanup.policy": "compact"},
		CreatedMs: 1700000000000, Owners: []FirstOwner{{From: 0, To: 2, Node: 1, Incarnation: inc}, {From: 2, To: 3, Node: 2, Incarnation: by}}, AtMs: 1700000000123, By: inc, Nonce: "n"}
	gone := &topicRecord{Format: 1, Version: 13, Op: opDelete, Name: "orders", ID: id.String(), Partitions: 3, CreatedMs: 1700000000000, AtMs: 1700000000456, By: inc, Nonce: "m"}
	type kept struct {
		key    string
		value  any
		decode func(key string, b []byte) (any, error)
	}
	plain := func(v any) func(string, []byte) (any, error) {
		return func(key string, b []byte) (any, error) {
			p := reflect.New(reflect.TypeOf(v))
			err := decode(key, b, p.Interface())
			return p.Elem().Interface(), err
		}
	}
	record := func(key string, b []byte) (any, error) { return decodeTopic(key, b) }
	var all []kept
	add := func(key string, v any) { all = append(all, kept{key, v, plain(v)}) }
	add(clusterKey, clusterObject{Format: 1, ClusterID: "_Qn_iv_jR4ettml16XYyJQ", Store: string(inc), CreateMs: 1700000000000, Nonce: "n"})
	add(numbered(recoveryPrefix, 2), clusterObject{Format: 1, ClusterID: "_Qn_iv_jR4ettml16XYyJQ", Store: string(by), Recovery: 2, CreateMs: 1700000000000, Nonce: "n"})
	add(numbered(nodePrefix, 1), nodeObject{Format: 1, Node: 1, By: inc, ClaimedMs: 1700000000000})
	add(numbered(pidPrefix, 3), pidObject{Format: 1, First: 3000, Count: 1000, Node: 1, By: inc, ClaimedMs: 1700000000000, Nonce: "n"})
	all = append(all, kept{topicObject("orders", 12), topic, record}, kept{topicObject("orders", 13), gone, record})
	add(numbered(startsPrefix, 4), startsObject{Format: 1, N: 4, AtMs: 1700000000000, By: inc, Nonce: "n", Starts: map[string]map[int32]int64{id.String(): {0: 17, 7: 42}}})
	add(rowStore, storeRow{Format: 1, Store: string(inc)})
	add(rowCluster, clusterRow{Format: 1, ClusterID: "_Qn_iv_jR4ettml16XYyJQ", Recovery: 2})
	add(rowPID, pidRow{Format: 1, Next: 4})
	add(agentKey(1), agentRow{Format: 1, Node: 1, Incarnation: inc, Epoch: 3, StartedMs: 1700000000000})
	add(agentKey(2), agentRow{Format: 1, Node: 2, Incarnation: by, Epoch: 4, StartedMs: 1700000000000, Host: "10.0.0.2", Port: 9092, Rack: "b", Reader: true, Process: "boot pid:[1] 7 99"})
	all = append(all, kept{topicRow("orders"), topic, record})
	row := func(key string, b []byte) (any, error) { return decodePartition(key, b) }
	all = append(all, kept{partRow(tp), partitionRow{Format: 1, Epoch: 3, LogStart: 42}, row},
		kept{partRow(ids.TopicPartition{Topic: id}), partitionRow{Format: 1, Epoch: 4, LogStart: 42, Owner: inc}, row},
		kept{segment.row(tp), segmentValue{Format: 1, Size: 1000, LogSize: 900, Records: 200, MinTimestamp: -1, MaxTimestamp: 1700000000000, LastStable: 300, Uploaded: 1700000000123},
			func(key string, b []byte) (any, error) { return decodeSegment(key, b) }})
	add(sealedPrefix+string(inc), sealedRow{Format: 1, Seal: 513, By: by, AtMs: 1700000000000})
	add(Released{inc, 77}.row(), releasedRow{Format: 1, Partitions: 12, AtMs: 1700000000000})

	var b bytes.Buffer
	for _, k := range all {
		v, err := encode(k.value)
		mustNil(t, err)
		fmt.Fprintf(&b, "%s\t%s", k.key, v)
	}
	lines := strings.SplitAfter(string(golden.Bytes(t, "metadata-v1.txt", b.Bytes())), "\n")
	if len(lines) != len(all)+1 {
		t.Fatalf("%d lines, want %d", len(lines)-1, len(all))
	}
	for i, k := range all {
		key, value, _ := strings.Cut(lines[i], "\t")
		got, err := k.decode(key, []byte(value))
		if err != nil || key != k.key || !reflect.DeepEqual(got, k.value) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", key, err, got, k.value)
		}
	}
}
