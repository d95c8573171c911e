package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestScaleTable measures servers with many partitions, for docs/performance.md.
// SCALE lists the columns: ours:10000, kafka:5000, each with one topic, or
// ours:10000x100 with that many topics.
func TestScaleTable(t *testing.T) {
	spec := os.Getenv("SCALE")
	if spec == "" {
		t.Skip("takes minutes: `make scale` runs it")
	}
	table := &scaleTable{}
	for _, column := range strings.Split(spec, ",") {
		table.columns = append(table.columns, column)
		measureColumn(t, table, column)
		if out := os.Getenv("SCALE_OUT"); out != "" {
			if err := os.WriteFile(out, []byte(table.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("\n%s", table)
}

func measureColumn(t *testing.T, table *scaleTable, column string) {
	server, size, _ := strings.Cut(column, ":")
	total, topics, several := strings.Cut(size, "x")
	n, err := strconv.Atoi(total)
	if err != nil {
		t.Fatalf("SCALE=%s: %v", column, err)
	}
	count := 1
	if several {
		if count, err = strconv.Atoi(topics); err != nil {
			t.Fatalf("SCALE=%s: %v", column, err)
		}
	}
	t.Run(column, func(t *testing.T) {
		m := &measuring{t: t, table: table, column: column, idle: 30 * time.Second}
		switch server {
		case "ours":
			m.node = idleNode(t, NodeOptions{Args: []string{"--wal-size", "512MiB", "--memory-tail", "256MiB"}})
			m.s = ours{m.node}
		case "kafka":
			m.s = newApache(t)
		default:
			t.Fatalf("unknown server %q", server)
		}
		m.run(scaleTopics(count), int32(n/count))
	})
}

func scaleTopics(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("scale-%04d", i))
	}
	return out
}
