package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumer reads n records in a group, commits, and stays until stop.
func (n *node) consumer(group string, topics []string, records int, opts ...kgo.Opt) (stop func()) {
	n.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(n.agent.KafkaAddr()), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit()}, opts...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	for got := 0; got < records; {
		f := cl.PollRecords(ctx, records-got)
		if err := f.Err(); err != nil {
			n.t.Fatal(err)
		}
		got += len(f.Records())
		if err := cl.CommitRecords(ctx, f.Records()...); err != nil {
			n.t.Fatal(err)
		}
	}
	return cl.Close
}

// group is what group describe says.
func (n *node) group(name string) (d describedGroup) {
	n.t.Helper()
	var all []describedGroup
	if err := json.Unmarshal([]byte(n.ok("", "group", "describe", name, "-o", "json")), &all); err != nil || len(all) != 1 {
		n.t.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}

// committed is what a group has: "topic-partition=offset", in order.
func (d describedGroup) committed() (out []string) {
	for _, p := range d.Partitions {
		if p.Committed >= 0 {
			out = append(out, fmt.Sprintf("%s-%d=%d", p.Topic, p.Partition, p.Committed))
		}
	}
	return out
}

func TestGroupVerbs(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders", "-p", "2")
	n.ok(lines("a", 30), "produce", "orders", "-p", "0")
	n.ok(lines("b", 10), "produce", "orders", "-p", "1")
	n.ok(lines("c", 5), "produce", "other")
	stop := n.consumer("billing", []string{"orders"}, 40, kgo.InstanceID("one"), kgo.ClientID("biller"))
	n.ok(lines("d", 7), "produce", "orders", "-p", "1")

	d := n.group("billing")
	if d.State != "Stable" || d.ProtocolType != "consumer" || d.Protocol == "" || d.Coordinator != 1 || d.Lag != 7 || len(d.Members) != 1 || len(d.Partitions) != 2 {
		t.Fatalf("%+v", d)
	}
	m, p0, p1 := d.Members[0], d.Partitions[0], d.Partitions[1]
	if want := []assignedTopics{{"orders", []int32{0, 1}}}; m.InstanceID != "one" || m.ClientID != "biller" || m.Host == "" || !reflect.DeepEqual(m.Assigned, want) {
		t.Errorf("member: %+v", m)
	}
	if p0.Committed != 30 || p0.End != 30 || p0.Lag != 0 || p0.LagSeconds == nil || *p0.LagSeconds != 0 || p0.MemberID != m.MemberID {
		t.Errorf("partition without lag: %+v", p0)
	}
	if p1.Committed != 10 || p1.End != 17 || p1.Lag != 7 || p1.LagSeconds == nil || *p1.LagSeconds < 0 || *p1.LagSeconds > 60 {
		t.Errorf("partition with lag: %+v", p1)
	}
	out := n.ok("", "group", "describe", "billing")
	if !strings.HasPrefix(out, "GROUP ") || !strings.Contains(out, "billing: Stable, 1 members, lag 7,") || !strings.Contains(out, "(static, one) at") || !strings.Contains(out, " orders:0,1\n") {
		t.Errorf("described as\n%s", out)
	}
	for _, args := range [][]string{{"group", "reset", "billing", "--topic", "orders", "--to-earliest", "--yes"}, {"group", "rm", "billing", "--yes"}} {
		if _, stderr, code := n.run("", args...); code != exitError || !strings.Contains(stderr, "group billing is active (Stable, 1 members): stop its consumers") {
			t.Errorf("%v while it is active: exit code %d, %s", args, code, stderr)
		}
	}
	if _, stderr, code := n.run("", "group", "offset-delete", "billing", "--topic", "orders:1", "--yes"); code != exitError || !strings.Contains(stderr, "the group consumes it now") {
		t.Errorf("offsets of a topic that is consumed: exit code %d, %s", code, stderr)
	}
	stop()
	n.leave("billing", "one")
	if out := n.ok("", "group", "ls"); !slices.Equal(strings.Fields(out), []string{"GROUP", "STATE", "TYPE", "COORDINATOR", "billing", "Empty", "consumer", "1"}) {
		t.Errorf("listed as\n%s", out)
	}
	if out := n.ok("", "group", "ls", "--state", "stable", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("stable groups: %s", out)
	}
	n.ok("", "group", "reset", "billing", "--topic", "other", "--to-offset", "3", "--yes")
	if out := n.ok("", "group", "offset-delete", "billing", "--topic", "orders:1", "--topic", "other", "--dry-run"); strings.Count(out, "\n") != 3 {
		t.Errorf("what would be deleted:\n%s", out)
	}
	n.ok("y\n", "group", "offset-delete", "billing", "--topic", "orders:1", "--topic", "other")
	if got := n.group("billing").committed(); !slices.Equal(got, []string{"orders-0=30"}) {
		t.Errorf("offsets after some were deleted: %v", got)
	}
	n.ok("", "group", "rm", "billing", "--dry-run")
	if _, stderr, code := n.run("", "group", "rm", "billing", "nobody", "--yes"); code != exitPartial || !strings.Contains(stderr, "there is no group nobody") {
		t.Errorf("deletion of a group and none: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := n.run("", "group", "describe", "billing"); code != exitError || !strings.Contains(stderr, "there is no group billing") {
		t.Errorf("a deleted group: exit code %d, %s", code, stderr)
	}
}

func TestGroupReset(t *testing.T) {
	n := startNode(t)
	n.ok("", "topic", "create", "orders", "-p", "2")
	n.ok(lines("a", 10), "produce", "orders", "-p", "0")
	n.ok(lines("b", 4), "produce", "orders", "-p", "1")
	n.ok("", "topic", "trim", "orders", "-p", "0", "--before", "2", "--yes")
	time.Sleep(5 * time.Millisecond)
	middle := time.Now()
	time.Sleep(5 * time.Millisecond)
	n.ok(lines("c", 10), "produce", "orders", "-p", "0")
	n.ok("x\n", "produce", "other")
	file := filepath.Join(t.TempDir(), "offsets")
	if err := os.WriteFile(file, []byte("orders,1,2\n\norders, 0, 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string // committed afterwards
		warn string // in stderr
	}{
		{"--topic orders:1 --to-offset 3", "orders-1=3", ""},
		{"--topic orders --to-earliest", "orders-0=2 orders-1=0", ""},
		{"--topic orders --to-latest", "orders-0=20 orders-1=4", ""},
		{"--topic orders:0 --to-time " + middle.UTC().Format(time.RFC3339Nano), "orders-0=10 orders-1=4", ""},
		{"--topic orders --to-time -1h", "orders-0=2 orders-1=0", ""},
		{"--topic orders --to-offset 7", "orders-0=7 orders-1=4", "orders-1 ends at offset 4, before 7: the new offset is 4"},
		{"--topic orders --shift-by -2", "orders-0=5 orders-1=2", ""},
		{"--topic orders:0 --topic orders2:0 --shift-by 1", "", ""},
		{"--topic orders:0 --shift-by -100", "orders-0=2 orders-1=2", "orders-0 begins at offset 2, not -95: the new offset is 2"},
		{"--topic orders:0 --shift-by 9223372036854775807", "orders-0=20 orders-1=2", "ends at offset 20"},
		{"--from-file " + file, "orders-0=5 orders-1=2", ""},
		{"--topic other --to-current", "orders-0=5 orders-1=2 other-0=1", ""},
		{"--all-topics --to-earliest", "orders-0=2 orders-1=0 other-0=0", ""},
		{"--all-topics --to-current", "orders-0=2 orders-1=0 other-0=0", ""},
	} {
		args := append([]string{"group", "reset", "g"}, strings.Fields(c.args)...)
		if c.want == "" {
			if _, stderr, code := n.run("", append(args, "--yes")...); code != exitError || !strings.Contains(stderr, "there is no topic orders2") {
				t.Errorf("%s: exit code %d, %s", c.args, code, stderr)
			}
			continue
		}
		before := n.groupOr("g")
		dry := n.ok("", append(args, "--dry-run")...)
		if got := n.groupOr("g"); !slices.Equal(got, before) {
			t.Errorf("%s: the dry run changed %v to %v", c.args, before, got)
		}
		out, stderr, code := n.run("y\n", args...)
		if code != exitOK || out != dry || !strings.Contains(stderr, c.warn) || c.warn == "" && strings.Contains(stderr, "warning") {
			t.Errorf("%s: exit code %d, %s\n%s, the dry run said\n%s", c.args, code, stderr, out, dry)
		}
		if got := n.group("g").committed(); strings.Join(got, " ") != c.want {
			t.Errorf("%s: offsets %v, want %s", c.args, got, c.want)
		}
	}
	var rows []resetOffset
	if err := json.Unmarshal([]byte(n.ok("", "group", "reset", "g", "--topic", "orders:1", "--to-latest", "--dry-run", "-o", "json")), &rows); err != nil ||
		!slices.Equal(rows, []resetOffset{{"orders", 1, 0, 4}}) {
		t.Errorf("rows: %+v, %v", rows, err)
	}
	for args, want := range map[string]string{
		"--topic orders": "give one of --to-earliest",
		"--topic orders --to-earliest --to-latest": "not --to-earliest and --to-latest",
		"--to-earliest": "either --topic or --all-topics",
		"--all-topics --topic orders --to-earliest":      "either --topic or --all-topics",
		"--topic orders:x --to-earliest":                 "want TOPIC or TOPIC:0,2",
		"--topic orders:0,0 --to-earliest":               "want TOPIC or TOPIC:0,2",
		"--topic orders --topic orders:1 --to-earliest":  "want TOPIC or TOPIC:0,2",
		"--topic orders:7 --to-earliest":                 "no partition 7",
		"--topic orders --to-time yesterday":             "--to-time",
		"--topic orders --from-file " + file:             "leave --topic",
		"--from-file " + filepath.Join(n.dir, "meta.db"): "line 1",
	} {
		if _, stderr, code := n.run("", append([]string{"group", "reset", "g", "--yes"}, strings.Fields(args)...)...); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, want %q in %s", args, code, want, stderr)
		}
	}
	if _, stderr, code := n.run("", "group", "reset", "fresh", "--topic", "orders", "--shift-by", "1", "--yes"); code != exitUsage || !strings.Contains(stderr, "no committed offset of orders-0") {
		t.Errorf("shift without an offset: exit code %d, %s", code, stderr)
	}
	if _, _, code := n.run("n\n", "group", "reset", "g", "--all-topics", "--to-latest"); code != exitError || n.group("g").committed()[0] != "orders-0=2" {
		t.Errorf("no as answer: exit code %d", code)
	}
}

// groupOr are the committed offsets of a group that may not be there.
func (n *node) groupOr(name string) []string {
	if _, _, code := n.run("", "group", "describe", name); code != exitOK {
		return nil
	}
	return n.group(name).committed()
}

// The age of the next record shows how far a group is behind in time.
func TestGroupBehind(t *testing.T) {
	n := startNode(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.agent.KafkaAddr()), kgo.AllowAutoTopicCreation())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range 5 {
		r := &kgo.Record{Topic: "orders", Value: []byte("x"), Timestamp: time.Now().Add(-time.Hour + time.Duration(i)*time.Minute)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	n.ok("", "group", "reset", "g", "--topic", "orders", "--to-offset", "2", "--yes")
	p := n.group("g").Partitions[0]
	if p.Lag != 3 || p.LagSeconds == nil || *p.LagSeconds < 57*60 || *p.LagSeconds > 59*60 {
		t.Errorf("%+v, want about 58 minutes", p)
	}
	if out := n.ok("", "group", "describe", "g"); !strings.Contains(out, " 58m") {
		t.Errorf("described as\n%s", out)
	}
}

// leave takes a static member out, who does not leave by itself.
func (n *node) leave(group, instance string) {
	n.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.agent.KafkaAddr()))
	if err != nil {
		n.t.Fatal(err)
	}
	defer cl.Close()
	left, err := kadm.NewClient(cl).LeaveGroup(n.t.Context(), kadm.LeaveGroup(group).InstanceIDs(instance))
	if err == nil {
		err = left.Error()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}
