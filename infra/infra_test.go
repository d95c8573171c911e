// Package infra holds what is shipped beside the program; its tests check that
// dashboards and alerts fit what a node exports.
package infra

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/services/agent"
)

// targetLabels are given by Prometheus to every series.
var targetLabels = []string{"instance", "job"}

// exported are the series names of a node with their labels. That a node
// exports just the agent's table is tested in localstack/e2e.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{"up": nil}
	for _, m := range agent.Metrics() {
		name := agent.MetricPrefix + m.Name
		if m.Kind == agent.Histogram {
			out[name+"_bucket"] = append(slices.Clone(m.Labels), "le")
			out[name+"_sum"], out[name+"_count"] = m.Labels, m.Labels
			continue
		}
		out[name] = m.Labels
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		out[f.GetName()] = nil
	}
	return out
}

var grafana = strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$instance", ".*", "$topic", ".*", "$group", ".*")

// checkExpr parses an expression and checks the names and labels in it. It
// returns the labels that its series may have.
func checkExpr(t *testing.T, where, expr string, known map[string][]string) (labels map[string]bool) {
	t.Helper()
	e, err := parser.ParseExpr(grafana.Replace(expr))
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
		return nil
	}
	labels = map[string]bool{}
	var matched, grouped []string
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			own, ok := known[n.Name]
			if !ok {
				t.Errorf("%s: no metric %q in %s", where, n.Name, expr)
			}
			own = append(slices.Clone(own), targetLabels...)
			for _, l := range own {
				labels[l] = true
			}
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" && !slices.Contains(own, m.Name) {
					t.Errorf("%s: %s has no label %q in %s", where, n.Name, m.Name, expr)
				}
			}
		case *parser.AggregateExpr:
			grouped = append(grouped, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				matched = append(matched, n.VectorMatching.MatchingLabels...)
			}
		}
		return nil
	})
	for _, l := range append(matched, grouped...) {
		if !labels[l] {
			t.Errorf("%s: no series has label %q in %s", where, l, expr)
		}
	}
	if a, ok := e.(*parser.AggregateExpr); ok && a.Op != parser.TOPK {
		maps.DeleteFunc(labels, func(l string, _ bool) bool { return !slices.Contains(a.Grouping, l) })
	}
	return labels
}

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) (out []rule) {
	t.Helper()
	b, err := os.ReadFile("prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

// used finds {{ $labels.x }} in templates of Prometheus, and {{x}} in legends of Grafana.
var used = regexp.MustCompile(`\{\{ *(?:\$labels\.)?(\w+) *\}\}`)

func checkTemplate(t *testing.T, where, text string, labels map[string]bool) {
	t.Helper()
	for _, m := range used.FindAllStringSubmatch(text, -1) {
		if !labels[m[1]] {
			t.Errorf("%s: %q uses label %q, which the expression does not have", where, text, m[1])
		}
	}
}

// TestAlerts checks that each alert can be evaluated on what a node exports,
// and that its runbook is there.
func TestAlerts(t *testing.T) {
	known := exported(t)
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	runbooks := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(string(doc), -1) {
		runbooks[m[1]] = true
	}
	all := rules(t)
	if len(all) == 0 {
		t.Fatal("no rules")
	}
	for _, r := range all {
		labels := checkExpr(t, r.Alert, r.Expr, known)
		for _, a := range []string{"summary", "description", "runbook_url"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", r.Alert, a)
			}
			checkTemplate(t, r.Alert, r.Annotations[a], labels)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if !strings.HasSuffix(r.Annotations["runbook_url"], "/docs/operations.md#"+strings.ToLower(r.Alert)) || !runbooks[r.Alert] {
			t.Errorf("%s: no runbook at %s", r.Alert, r.Annotations["runbook_url"])
		}
		delete(runbooks, r.Alert)
	}
	for name := range runbooks {
		t.Errorf("docs/operations.md has a section for %s, which is no alert", name)
	}
}

// dashboard is what the tests read of a dashboard.
type dashboard struct {
	UID, Title string
	Templating struct {
		List []struct {
			Name  string
			Query any
		}
	}
	Panels []struct {
		ID         int
		Title      string
		GridPos    struct{ H, W, X, Y int }
		Datasource struct{ UID string }
		Targets    []struct{ RefID, Expr, LegendFormat string }
	}
}

var labelValues = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)

// TestDashboards checks that each panel can be drawn of what a node exports.
func TestDashboards(t *testing.T) {
	known := exported(t)
	files, err := filepath.Glob("grafana/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 5 {
		t.Errorf("%d dashboards: %q", len(files), files)
	}
	uids := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(b, &d); err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if d.UID == "" || d.Title == "" || uids[d.UID] || len(d.Panels) == 0 {
			t.Errorf("%s: uid %q, title %q, %d panels", f, d.UID, d.Title, len(d.Panels))
		}
		uids[d.UID] = true
		checkDashboard(t, f, &d, known)
	}
}

func checkDashboard(t *testing.T, f string, d *dashboard, known map[string][]string) {
	t.Helper()
	variables := map[string]bool{"__rate_interval": true, "__range": true}
	for _, v := range d.Templating.List {
		variables[v.Name] = true
		if q, ok := v.Query.(map[string]any); ok {
			m := labelValues.FindStringSubmatch(q["query"].(string))
			if m == nil {
				t.Errorf("%s: variable %s: %v", f, v.Name, q)
				continue
			}
			if labels := checkExpr(t, f+": variable "+v.Name, m[1], known); !labels[m[2]] {
				t.Errorf("%s: variable %s: %s has no label %s", f, v.Name, m[1], m[2])
			}
		}
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		where := f + ": " + p.Title
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s: id %d, %d targets, data source %q", where, p.ID, len(p.Targets), p.Datasource.UID)
		}
		ids[p.ID] = true
		g := p.GridPos
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s: lies over %q or the edge", where, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		for _, x := range p.Targets {
			checkTemplate(t, where, x.LegendFormat, checkExpr(t, where, x.Expr, known))
			for _, m := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(x.Expr, -1) {
				if !variables[m[1]] {
					t.Errorf("%s: no variable %s", where, m[0])
				}
			}
		}
	}
}

// TestRulesFire runs the unit tests of the alerts.
func TestRulesFire(t *testing.T) {
	promtool := testenv.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests, err := os.ReadFile("prometheus/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if !strings.Contains(string(tests), `alertname="`+r.Alert+`"`) {
			t.Errorf("rules_test.yaml does not test %s", r.Alert)
		}
	}
}
