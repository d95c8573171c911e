package infra

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const composeFile = "compose.yaml"

// project is what the tests read of a Compose file.
type project struct {
	Services map[string]*service
	Volumes  map[string]any
}

type service struct {
	Image      string
	Build      *struct{ Context, Dockerfile string }
	Profiles   []string
	Entrypoint []string
	Command    []string
	Env        map[string]string `json:"environment"`
	Network    string            `json:"network_mode"`
	ReadOnly   bool              `json:"read_only"`
	CapDrop    []string          `json:"cap_drop"`
	Grace      string            `json:"stop_grace_period"`
	Ports      []struct {
		Target    int
		Published string
		HostIP    string `json:"host_ip"`
	}
	Volumes []struct{ Type, Source, Target string }
	Depends map[string]any `json:"depends_on"`
}

// composed reads a Compose file with the library of Docker Compose.
func composed(t *testing.T, path string) (*project, error) {
	t.Helper()
	cmd := exec.Command(testenv.Need(t, "compose"), path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // nothing of this machine's is put into it
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		return nil, fmt.Errorf("%w: %s", err, exit.Stderr)
	} else if err != nil {
		return nil, err
	}
	var p project
	return &p, json.Unmarshal(out, &p)
}

// ours tells whether the service runs our program.
func (s *service) ours() bool { return s.Build != nil }

// flag returns the value of --NAME=… in the command.
func (s *service) flag(name string) string {
	for _, a := range s.Command {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
	}
	return ""
}

// TestCompose: the file is one that Compose takes, and each image, port, flag, volume and file in it is there and used.
func TestCompose(t *testing.T) {
	p, err := composed(t, composeFile)
	if err != nil {
		t.Fatal(err)
	}
	volumes, profiles := map[string]bool{}, map[string]int{}
	nodes := map[string]string{}
	for name, s := range p.Services {
		for _, profile := range s.Profiles {
			profiles[profile]++
		}
		tag := s.Image[strings.LastIndex(s.Image, ":")+1:]
		if !strings.Contains(s.Image, ":") || tag == "latest" || s.ours() != (s.Image == "cirrolog:dev") {
			t.Errorf("%s: image %q has no fixed version, or is not ours", name, s.Image)
		}
		for _, v := range s.Volumes {
			if v.Type == "volume" {
				volumes[v.Source] = true
			} else if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %d to others than this machine", name, port.Target)
			}
		}
		if s.ours() {
			p.checkOurs(t, name, s)
			if id := s.flag("node-id"); id != "" && nodes[id] != "" {
				t.Errorf("%s and %s have node id %s", name, nodes[id], id)
			} else {
				nodes[id] = name
			}
		}
	}
	for name := range p.Volumes {
		if !volumes[name] {
			t.Errorf("nothing uses the volume %s", name)
		}
	}
	text, err := os.ReadFile(composeFile)
	if err != nil {
		t.Fatal(err)
	}
	for profile := range profiles {
		if !strings.Contains(string(text), "--profile "+profile+" ") {
			t.Errorf("the head of %s does not name the profile %s", composeFile, profile)
		}
	}
}

// checkOurs checks a service that runs our program.
func (p *project) checkOurs(t *testing.T, name string, s *service) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	checkArguments(t, name, s.Command)
	for v := range s.Env {
		checkVariable(t, name, s.Command[0], v)
	}
	if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
		t.Errorf("%s may write to its root file system, or has capabilities", name)
	}
	if admin := s.Env["CIRROLOG_ADMIN"]; admin != s.flag("admin-addr") {
		t.Errorf("%s: the health check asks %q, the agent listens on %q", name, admin, s.flag("admin-addr"))
	}
	grace, err := time.ParseDuration(s.Grace)
	if def := 30 * time.Second; err != nil || grace <= def { // of --shutdown-timeout
		t.Errorf("%s is killed after %q, it may take %v to end", name, s.Grace, def)
	}
	// Clients on this machine are told a published port.
	holder := name
	if n, ok := strings.CutPrefix(s.Network, "service:"); ok {
		holder = n
	}
	host, port, err := net.SplitHostPort(s.flag("advertised-addr"))
	published := slices.ContainsFunc(p.Services[holder].Ports, func(x struct {
		Target    int
		Published string
		HostIP    string `json:"host_ip"`
	}) bool {
		return x.Published == port && ":"+fmt.Sprint(x.Target) == s.flag("kafka-addr")
	})
	if err != nil || host != "localhost" || !published {
		t.Errorf("%s: clients are told %q, where nobody listens", name, s.flag("advertised-addr"))
	}
}

// TestComposeRefused: the reader of Compose files finds mistakes.
func TestComposeRefused(t *testing.T) {
	text, err := os.ReadFile(composeFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"    profiles: [single]\n", "    profils: [single]\n", "profils"},
		{"network_mode: service:net", "network_mode: service:nets", "nets"},
		{"volumes: [\"redis:/data\"]", "volumes: [\"rdis:/data\"]", "rdis"},
		{"      retries: 30", "      retries: many", "retries"},
	} {
		path := filepath.Join(t.TempDir(), composeFile)
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), c.old, c.new, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := composed(t, path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.new, err)
		}
	}
}

// TestComposeMonitoring: Prometheus asks all agents and takes the alerts, and Grafana finds it and the dashboards.
func TestComposeMonitoring(t *testing.T) {
	p, err := composed(t, composeFile)
	if err != nil {
		t.Fatal(err)
	}
	var admins []string
	for _, s := range p.Services {
		if s.ours() && slices.Contains(s.Profiles, "cluster") {
			admins = append(admins, s.flag("admin-addr"))
		}
	}
	slices.Sort(admins)
	var config struct {
		Scrape []struct {
			Job    string                       `yaml:"job_name"`
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	into(t, "compose/prometheus.yaml", &config)
	if len(config.Scrape) != 1 || config.Scrape[0].Job != "cirrolog" || !slices.Equal(config.Scrape[0].Static[0].Targets, admins) {
		t.Errorf("Prometheus asks %+v, the agents are %q", config, admins)
	}
	dir := t.TempDir()
	for _, v := range p.Services["prometheus"].Volumes {
		if v.Type == "bind" {
			sh(t, fmt.Sprintf("cp %s %s", v.Source, filepath.Join(dir, filepath.Base(v.Target))))
		}
	}
	if out, err := exec.Command(testenv.Need(t, "promtool"), "check", "config", filepath.Join(dir, "prometheus.yaml")).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	var sources struct{ Datasources []struct{ Type, URL string } }
	into(t, "compose/grafana/datasource.yaml", &sources)
	if want := "http://" + p.Services["prometheus"].flag("web.listen-address"); len(sources.Datasources) != 1 || sources.Datasources[0].URL != want {
		t.Errorf("Grafana asks %+v, Prometheus listens on %s", sources, want)
	}
	var providers struct {
		Providers []struct{ Options struct{ Path string } }
	}
	into(t, "compose/grafana/dashboards.yaml", &providers)
	if !slices.ContainsFunc(p.Services["grafana"].Volumes, func(v struct{ Type, Source, Target string }) bool {
		return v.Target == providers.Providers[0].Options.Path && filepath.Base(v.Source) == "grafana"
	}) {
		t.Errorf("no dashboards at %+v", providers)
	}
}

func into(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestComposeRuns: the services of the profile cluster, with their own commands and variables, are a cluster in which
// records are produced and consumed, and the end of an agent is survived. What is no image of ours is the program of
// the same name of this machine. Every port that is published has somebody who listens, except for those of obs.
func TestComposeRuns(t *testing.T) {
	i := buildImage(t)
	p, err := composed(t, composeFile)
	if err != nil {
		t.Fatal(err)
	}
	if node := p.Services["node"]; !slices.Equal(node.Command, i.cmd) {
		t.Errorf("the service node has %q, the image %q, which is tested", node.Command, i.cmd)
	}
	path := "PATH=" + filepath.Dir(testenv.Need(t, "minio")) + ":" + filepath.Dir(testenv.Need(t, "redis-server")) + ":/usr/bin:/bin"
	network := container{Idle: true}.start(t)
	for name, s := range map[string]*service{"minio": p.Services["minio"], "redis": p.Services["redis"]} {
		dir := t.TempDir()
		argv := []string{"/usr/bin/env"}
		for _, a := range append(slices.Clone(s.Entrypoint), s.Command...) {
			argv = append(argv, strings.ReplaceAll(a, "/data", dir))
		}
		env := []string{path, "HOME=" + dir}
		for k, v := range s.Env {
			env = append(env, k+"="+v)
		}
		t.Logf("%s: %q", name, argv)
		container{Root: "/", Network: network.network, Args: argv, Env: env}.start(t)
	}
	awaitStatus(t, network, 9000, "/minio/health/ready")
	agents := map[string]*running{}
	var client container
	for name, s := range p.Services {
		if !s.ours() || !slices.Contains(s.Profiles, "cluster") {
			continue
		}
		c := i.container(t, s.Command...)
		c.Network, c.Hosts, c.ReadOnly = network.network, []string{"minio", "redis"}, s.ReadOnly
		for k, v := range s.Env {
			c.Env = append(c.Env, k+"="+v)
		}
		agents[name] = c.start(t)
		awaitHealthy(t, agents[name], c.with(agents[name], i.health[1:]...))
		client = c
	}
	brokers := "--brokers=localhost:9092,localhost:9093,localhost:9094"
	client.with(network, "topic", "create", "words", "-p", "6", brokers).must(t, "")
	lines := strings.Repeat("word\n", 600)
	client.with(network, "produce", "words", brokers).must(t, lines)
	for _, port := range p.Services["net"].Ports {
		if obs := port.Target == 3000; obs == listens(t, network, fmt.Sprint(port.Target)) {
			t.Errorf("port %d is published, and nobody of the profile listens there", port.Target)
		}
	}
	awaitStatus(t, network, 8082, "/topics/words") // the HTTP gateway goes by the address that clients are told
	agents["agent2"].terminate(t, time.Minute)
	got, errs := "", ""
	for end := time.Now().Add(20 * time.Second); got != lines && time.Now().Before(end); {
		got, errs, _ = client.with(network, "consume", "words", "-e", brokers).run(t, "")
	}
	if got != lines {
		t.Errorf("consumed %d bytes of %d: %s", len(got), len(lines), errs)
	}
}
