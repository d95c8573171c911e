package infra

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/cirrolog/cirrolog/internal/golden"
	"github.com/cirrolog/cirrolog/internal/testenv"
)

const (
	chart           = "helm/cirrolog"
	defaults        = "helm/ci/default-values.yaml"
	full            = "helm/ci/full-values.yaml"
	oldestKube      = "1.28" // of Chart.yaml
	newestKube      = "1.37" // that kubernetes-validate knows
	monitoringGroup = "monitoring.coreos.com/v1"
)

// helm runs Helm and returns its stdout and what it says of the chart on stderr.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(testenv.Need(t, "helm"), args...)
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir, "KUBECONFIG="+filepath.Join(dir, "none"))
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	said := slices.DeleteFunc(strings.SplitAfter(errs.String(), "\n"), func(l string) bool { return strings.Contains(l, "found symbolic link in path") })
	return out.String(), strings.Join(said, ""), err
}

// template renders the chart as the release events in the namespace streams.
func template(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, errs, err := helm(t, append([]string{"template", "events", chart, "--namespace", "streams", "--kube-version", newestKube + ".0"}, args...)...)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, errs)
	}
	if errs != "" {
		t.Errorf("helm template warns: %s", errs)
	}
	return out, nil
}

// object of Kubernetes.
type object map[string]any

// at returns what is at a path, nil if nothing is.
func (o object) at(path ...any) any {
	var v any = map[string]any(o)
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// render returns the objects of the chart by KIND/NAME.
func render(t *testing.T, args ...string) map[string]object {
	t.Helper()
	text, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]object{}
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var o map[string]any
		if d.Decode(&o) != nil {
			break
		}
		if o != nil {
			out[fmt.Sprintf("%s/%s", o["kind"], object(o).at("metadata", "name"))] = o
		}
	}
	return out
}

// TestChart: what the chart makes with the least values, and with all, is what Kubernetes takes, by its own schemas.
func TestChart(t *testing.T) {
	for _, c := range []struct {
		values string
		kinds  []string
	}{
		{defaults, []string{"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "ServiceAccount", "StatefulSet"}},
		{full, []string{"ConfigMap", "ConfigMap", "ConfigMap", "ConfigMap", "ConfigMap", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Service", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet"}},
	} {
		t.Run(filepath.Base(c.values), func(t *testing.T) {
			t.Parallel()
			var kinds []string
			for name := range render(t, "-f", c.values) {
				kind, _, _ := strings.Cut(name, "/")
				kinds = append(kinds, kind)
			}
			slices.Sort(kinds)
			if !slices.Equal(kinds, c.kinds) {
				t.Errorf("%q, want %q", kinds, c.kinds)
			}
			text, err := template(t, "-f", c.values)
			if err != nil {
				t.Fatal(err)
			}
			validate(t, text, oldestKube, newestKube)
			if out, errs, err := helm(t, "lint", "--strict", "--kube-version", newestKube+".0", chart, "-f", c.values); err != nil {
				t.Errorf("helm lint: %v\n%s%s", err, out, errs)
			}
		})
	}
}

// validate checks objects by the schemas of versions of Kubernetes, those of the Prometheus operator by its types.
// Fields that there are not are mistakes.
func validate(t *testing.T, text string, versions ...string) {
	t.Helper()
	var core, operator []string
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		switch {
		case strings.Contains(doc, "\napiVersion: "+monitoringGroup):
			operator = append(operator, doc)
		case strings.Contains(doc, "\nkind: "):
			core = append(core, doc)
		}
	}
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(core, "---")), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(testenv.Root(), ".cache", "clients", "schemas", "bin", "kubernetes-validate")
	if _, err := os.Stat(program); err != nil {
		testenv.Missing(t, "kubernetes-validate")
	}
	for _, version := range versions {
		out, err := exec.Command(program, "--strict", "--kubernetes-version", version, file).CombinedOutput()
		if n := strings.Count(string(out), " passed for resource "); err != nil || n != len(core) {
			t.Errorf("Kubernetes %s takes %d of %d objects: %v\n%s", version, n, len(core), err, out)
		}
	}
	if len(operator) == 0 {
		return
	}
	cmd := exec.Command(testenv.Need(t, "monitoring"))
	cmd.Stdin = strings.NewReader(strings.Join(operator, "---\n"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), "\n") != len(operator) {
		t.Errorf("objects of the Prometheus operator: %v\n%s", err, out)
	}
}

// leaves lists the paths of all values that are no maps.
func leaves(prefix string, v any, into map[string]any) {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		into[prefix] = v
		return
	}
	for k, v := range m {
		leaves(strings.TrimPrefix(prefix+"."+k, "."), v, into)
	}
}

func values(t *testing.T, path string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := yaml.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	leaves("", v, out)
	return out
}

// elsewhere are values that exclude one of full-values.yaml, or that only "false" differs from; other tests give them.
var elsewhere = []string{"metadata.url", "rpc.token.existingSecret", "rpc.token.secretKey", "persistence.enabled", "networkPolicy.enabled", "podDisruptionBudget.enabled", "serviceAccount.create", "dashboards.labels.grafana_dashboard"}

// TestChartValues: the full values are full, the schema knows every value, and each has an effect.
func TestChartValues(t *testing.T) {
	all, given := values(t, chart+"/values.yaml"), values(t, full)
	for path, v := range all {
		found := slices.Contains(elsewhere, path)
		for p, other := range given {
			found = found || (p == path || strings.HasPrefix(p, path+".")) && fmt.Sprint(other) != fmt.Sprint(v)
		}
		if !found {
			t.Errorf("%s gives no %s that differs from the default", full, path)
		}
	}
	was, err := template(t, "-f", full)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"persistence.enabled=false", "networkPolicy.enabled=false", "podDisruptionBudget.enabled=false", "serviceAccount.create=false", "dashboards.labels.grafana_dashboard=on"} {
		now, err := template(t, "-f", full, "--set", set)
		if err != nil {
			t.Errorf("%s: %v", set, err)
		} else if now == was {
			t.Errorf("%s changes nothing", set)
		}
		if strings.HasPrefix(set, "persistence") { // the others leave an object out
			validate(t, now, newestKube)
		}
	}
}

// TestChartRefuses: values that can't work end helm with one line that says what and why.
func TestChartRefuses(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"image.repository=", "image.repository is missing: build infra/Dockerfile"},
		{"image.tag=", "image.tag is missing"},
		{"image.digest=sha256:12", "'/image/digest': 'sha256:12' does not match"},
		{"bucket=", "bucket is missing: s3://BUCKET/PREFIX"},
		{"bucket=dir:///data", "'/bucket': 'dir:///data' does not match pattern"},
		{"metadata.url=", "metadata.url is missing"},
		{"metadata.url=http://redis:6379", "'/metadata/url': 'http://redis:6379' does not match pattern"},
		{"metadata.existingSecret=s", "metadata.url and metadata.existingSecret can't be given together"},
		{"rpc.tls.existingSecret=a,rpc.token.existingSecret=b", "can't be given together: certificates need no token"},
		{"replicas=0", "'/replicas': minimum: got 0, want 1"},
		{"replicas=three", "'/replicas': got string, want integer"},
		{"firstNodeId=0", "'/firstNodeId': minimum: got 0, want 1"},
		{"role=follower", "'/role': value must be one of 'leader', 'reader'"},
		{"shutdownTimeoutSeconds=0", "'/shutdownTimeoutSeconds': minimum"},
		{"ports.kafka=92", "'/ports/kafka': minimum: got 92, want 1,024"},
		{"ports.http=9092", "must be four different ports"},
		{"persistence.size=50", "'/persistence/size': got number, want string"},
		{"persistence.whenScaled=Keep", "'/persistence/whenScaled': value must be one of 'Retain', 'Delete'"},
		{"persistence.enabled=false,config.topic-config.durability=local", "durability=local needs persistence.enabled"},
		{"podDisruptionBudget.maxUnavailable=0", "'/podDisruptionBudget/maxUnavailable'"},
		{"topologySpread.zone=Never", "'/topologySpread/zone': value must be one of"},
		{"serviceMonitor.enabled=true", "serviceMonitor.enabled needs networkPolicy.admin"},
		{"networkPolicy.admin[0].pods=x", "'pods' not allowed"},
		{"podLabels.app\\.kubernetes\\.io/name=x", "invalid propertyName 'app.kubernetes.io/name'"},
		{"config.wal-lingr=50ms", "'wal-lingr' not allowed"},
		{"config.data-dir=/data", "'data-dir' not allowed"},
		{"config.num-partitions=many", "'/config/num-partitions': got string, want integer"},
		{"env[0].name=CIRROLOG_WAL_LINGER", "'/env/0/name'"},
		{"replica=3", "'replica' not allowed"},
	} {
		t.Run(c.set, func(t *testing.T) {
			t.Parallel()
			if text, err := template(t, "-f", defaults, "--set", c.set); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q\n%s", err, c.want, text)
			}
		})
	}
	if _, errs, err := helm(t, "template", "events", chart, "-f", defaults, "--kube-version", "1.27.0"); err == nil || !strings.Contains(errs, "chart requires kubeVersion: >=1.28.0-0") {
		t.Errorf("Kubernetes 1.27: %v: %s", err, errs)
	}
}

// ofTheChart are flags that the chart gives by itself; config has the others.
var ofTheChart = []string{"config", "data-dir", "role", "kafka-addr", "http-addr", "admin-addr", "rpc-addr", "advertised-addr", "rpc-advertised-addr",
	"shutdown-timeout", "rpc-tls-ca", "rpc-tls-cert", "rpc-tls-key", "rpc-token-file", "node-id", "rack", "bucket", "metadata"}

// flag of a verb, as docs/cli.md tells it.
type flag struct{ kind, usage string }

// flagsOf returns the flags of a verb. That docs/cli.md tells those of the program is tested in services/cli.
func flagsOf(t *testing.T, verb string) map[string]flag {
	t.Helper()
	b, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]flag{}
	for _, section := range []string{"cirrolog", "cirrolog " + verb} {
		_, text, found := strings.Cut(string(b), "\n## "+section+"\n")
		if !found {
			t.Fatalf("docs/cli.md has no %s", section)
		}
		text, _, _ = strings.Cut(text, "\n## ")
		for _, m := range regexp.MustCompile("(?m)^\\| (?:`-.`, )?`--([a-z0-9-]+)` (\\w+) \\| .* \\| (.*) \\|$").FindAllStringSubmatch(text, -1) {
			out[m[1]] = flag{m[2], strings.ReplaceAll(m[3], "\\|", "|")}
		}
	}
	return out
}

// checkArguments checks that a command line of the program, without the program, has a verb and flags that exist.
func checkArguments(t *testing.T, where string, args []string) {
	t.Helper()
	verb := args[0]
	flags := flagsOf(t, verb)
	for _, a := range args[1:] {
		name, _, ok := strings.Cut(a, "=")
		if _, known := flags[strings.TrimPrefix(name, "--")]; !ok || !strings.HasPrefix(name, "--") || !known {
			t.Errorf("%s: cirrolog %s has no flag %s, or it is not given as --FLAG=VALUE", where, verb, a)
		}
	}
}

// checkVariable checks that a variable of the environment is one that the program knows.
func checkVariable(t *testing.T, where, verb, name string) {
	t.Helper()
	key, ok := strings.CutPrefix(name, "CIRROLOG_")
	if _, known := flagsOf(t, verb)[strings.ToLower(strings.ReplaceAll(key, "_", "-"))]; ok && !known {
		t.Errorf("%s: there is no variable %s", where, name)
	}
}

// schemaOf is the part of the chart's schema that a flag has.
func schemaOf(f flag) map[string]any {
	out := map[string]any{"description": f.usage}
	switch f.kind {
	case "bool":
		out["type"] = "boolean"
	case "int", "int32", "int64":
		out["type"] = "integer"
	case "float64":
		out["type"] = "number"
	case "bytes":
		out["type"] = []any{"string", "integer"}
	case "stringToString":
		out["type"], out["additionalProperties"] = "object", map[string]any{"type": []any{"string", "number", "boolean"}}
	default:
		out["type"] = "string"
	}
	return out
}

// TestChartFlags: config takes the flags of the program and no others, and what the chart gives by itself are flags.
func TestChartFlags(t *testing.T) {
	flags := flagsOf(t, "agent")
	properties := map[string]any{}
	for name, f := range flags {
		if !slices.Contains(ofTheChart, name) && !slices.Contains([]string{"admin", "brokers", "yes"}, name) {
			properties[name] = schemaOf(f)
		}
	}
	for _, name := range ofTheChart {
		if _, ok := flags[name]; !ok {
			t.Errorf("there is no flag --%s", name)
		}
	}
	path := chart + "/values.schema.json"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var schema object
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	schema["properties"].(map[string]any)["config"] = map[string]any{"type": "object", "description": "Flags of cirrolog agent, of which the chart gives the others.", "additionalProperties": false, "properties": properties}
	var want bytes.Buffer
	e := json.NewEncoder(&want)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(schema); err != nil {
		t.Fatal(err)
	}
	if golden.Update() {
		if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(b, want.Bytes()) {
		t.Errorf("%s does not have the flags of the program: run go test ./infra -run TestChartFlags -update", path)
	}
	for _, v := range []string{defaults, full} {
		set := statefulSet(t, render(t, "-f", v))
		checkArguments(t, v, set.args)
		for _, name := range slices.Collect(maps.Keys(set.env)) {
			checkVariable(t, v, "agent", name)
		}
	}
}
