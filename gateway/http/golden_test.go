package httpgate

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/golden"
)

// TestGolden reads the values of KeyTopic as an earlier program wrote them, and writes the same. They have no
// version: a field that is added is left out when it is empty.
func TestGolden(t *testing.T) {
	offset := int64(42)
	all := []keyRecord{
		{State: keyBegin, At: 1700000000000, Gateway: "g", Fingerprint: "f", Topic: "orders", Partitions: 3, Fallback: 2, Timestamp: 1700000000001, ProducerID: 77, Epoch: 1,
			Batches: []keyBatch{{Partition: 1, Sequence: 5, Count: 2}, {Partition: 2, Sequence: 0, Count: 1}}},
		{State: keyDone, At: 1700000000002, Begin: 9, Batches: []keyBatch{{Partition: 1, Sequence: 5, Count: 2, Offset: &offset}, {Partition: 2, Count: 1, Code: 40301, Message: "no"}}},
		{State: keyFree, At: 1700000000003, Begin: 9},
	}
	var b bytes.Buffer
	for _, r := range all {
		v, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(v, '\n'))
	}
	i := 0
	for l := range strings.Lines(string(golden.Bytes(t, "keys.txt", b.Bytes()))) {
		var got keyRecord
		if err := json.Unmarshal([]byte(l), &got); err != nil || !reflect.DeepEqual(got, all[i]) {
			t.Errorf("line %d: %v\n got %+v\nwant %+v", i, err, got, all[i])
		}
		i++
	}
}
