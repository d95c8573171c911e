package clients

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/e2e"
)

const yes = "yes"

// row is a client's line of the table, by column.
type row map[string]string

var columns = [...]string{"version", "idempotence", "none", "gzip", "snappy", "lz4", "zstd", "null keys and values", "headers", "900 KB values",
	"group of two", "one killed", "offsets resume", "kafka-consumer-groups"}

const (
	tableBegin = "<!-- written by TestClients from here -->\n"
	tableEnd   = "<!-- to here -->\n"
)

// line is a client's line. A version that is the machine's own is left out when
// lines are compared.
func (r row) line(lib library, compare bool) string {
	cells := []string{lib.name, lib.language}
	for _, c := range columns {
		v := r[c]
		if c == "version" && compare && lib.fromSystem {
			v = "*"
		}
		cells = append(cells, v)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// parseRow reads a line of the table.
func parseRow(line string) (name string, r row) {
	f := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
	if len(f) != len(columns)+2 {
		return "", nil
	}
	r = row{}
	for i, c := range columns {
		r[c] = strings.TrimSpace(f[i+2])
	}
	return strings.TrimSpace(f[0]), r
}

// checkTable compares the table of docs/clients.md with what was found, for the
// clients that ran; with UPDATE_DOCS=1 it writes it.
func checkTable(t *testing.T, rows map[string]row) {
	t.Helper()
	path := filepath.Join(testenv.Root(), "docs", "clients.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: want the lines %q and %q", path, tableBegin, tableEnd)
	}
	known := map[string]row{}
	for line := range strings.Lines(old) {
		if name, r := parseRow(line); r != nil {
			known[name] = r
		}
	}
	table := "| client | language | " + strings.Join(columns[:], " | ") + " |\n" + strings.Repeat("|---", len(columns)+2) + "|\n"
	var differ []string
	for _, lib := range libraries() {
		found, ran := rows[lib.name]
		if !ran {
			found = known[lib.name]
		}
		if found == nil {
			continue
		}
		for _, c := range columns { // a part that did not run found nothing else
			if found[c] == "" {
				found[c] = known[lib.name][c]
			}
		}
		if known[lib.name] == nil || found.line(lib, true) != known[lib.name].line(lib, true) {
			differ = append(differ, found.line(lib, false))
		}
		table += found.line(lib, false)
	}
	if os.Getenv("UPDATE_DOCS") == "1" {
		if err := os.WriteFile(path, []byte(before+tableBegin+table+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(differ) > 0 {
		t.Errorf("docs/clients.md does not say what was found; run the test with UPDATE_DOCS=1. Found:\n%s", strings.Join(differ, ""))
	}
}

// groupTool has Kafka's tool list, describe, reset and delete the groups that
// the other clients made.
func groupTool(t *testing.T, n *e2e.Node, rows map[string]row) {
	kafka, ok := newJava(t).(java)
	if !ok {
		t.Fatal("not Kafka's tools")
	}
	tool := func(args ...string) string {
		t.Helper()
		cmd := kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", append([]string{"--bootstrap-server", n.Kafka}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kafka-consumer-groups %v: %v\n%s\n%s", args, err, out, stderr.String())
		}
		return string(out)
	}
	listed, described := strings.Fields(tool("--list")), tool("--describe", "--all-groups")
	reset := tool("--reset-offsets", "--all-groups", "--all-topics", "--shift-by", "-10", "--execute")
	lagging := tool("--describe", "--all-groups")
	var gone strings.Builder
	var groups []string
	for _, lib := range libraries() {
		if rows[lib.name] == nil {
			continue
		}
		group := "group-" + lib.id()
		groups = append(groups, "--group", group)
		if !slices.Contains(listed, group) {
			t.Errorf("%s is not in the list: %v", group, listed)
		}
		for what, out := range map[string]string{"0": described, "10": lagging} {
			if got := lags(out, group); len(got) != partitions || slices.ContainsFunc(got, func(s string) bool { return s != what }) {
				t.Errorf("%s is described with the lags %v, want %d times %s:\n%s", group, got, partitions, what, out)
			}
		}
		if c := strings.Count(reset, group+" "); c != partitions {
			t.Errorf("%s: reset tells %d partitions:\n%s", group, c, reset)
		}
		rows[lib.name]["kafka-consumer-groups"] = yes
	}
	first := groups[1]
	gone.WriteString(tool("--delete-offsets", "--group", first, "--topic", strings.TrimPrefix(first, "group-")))
	if got := lags(tool("--describe", "--group", first), first); len(got) != 0 {
		t.Errorf("after --delete-offsets, which said %q, %s has the lags %v", gone.String(), first, got)
	}
	if out := tool(append([]string{"--delete"}, groups...)...); !strings.Contains(out, "successful") {
		t.Errorf("--delete: %s", out)
	}
	for _, left := range strings.Fields(tool("--list")) {
		if slices.Contains(groups, left) {
			t.Errorf("%s is there after its deletion", left)
		}
	}
}

// lags are the lags in what --describe printed of a group.
func lags(out, group string) (found []string) {
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 5 && f[0] == group {
			found = append(found, f[5])
		}
	}
	return found
}
