package infra

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// pod is what a StatefulSet says of its pods.
type pod struct {
	args   []string
	env    map[string]object // by name
	mounts map[string]object // place in the container → volume
	set    object
	spec   object // of the pod
	agent  object // container
}

func statefulSet(t *testing.T, objects map[string]object) *pod {
	t.Helper()
	for name, o := range objects {
		if !strings.HasPrefix(name, "StatefulSet/") {
			continue
		}
		p := &pod{set: o, env: map[string]object{}, mounts: map[string]object{}}
		p.spec = o.at("spec", "template", "spec").(map[string]any)
		p.agent = p.spec.at("containers", 0).(map[string]any)
		for _, a := range p.agent["args"].([]any) {
			p.args = append(p.args, a.(string))
		}
		for _, e := range p.agent["env"].([]any) {
			v := object(e.(map[string]any))
			p.env[v["name"].(string)] = v
		}
		volumes := map[string]object{}
		for _, v := range p.spec["volumes"].([]any) {
			v := object(v.(map[string]any))
			volumes[v["name"].(string)] = v
		}
		for _, m := range p.agent["volumeMounts"].([]any) {
			m := object(m.(map[string]any))
			p.mounts[m["mountPath"].(string)] = volumes[m["name"].(string)] // none for a claim
		}
		return p
	}
	t.Fatal("no StatefulSet")
	return nil
}

// podRun is a pod of a StatefulSet as Kubernetes would start it, with what it would get from the cluster.
type podRun struct {
	name, namespace, zone string
	index                 int
	secrets               map[string]map[string]string
	objects               map[string]object
}

// container of the image that runs the pod. Its data directory is empty.
func (k *podRun) container(t *testing.T, i *image, p *pod) container {
	t.Helper()
	c := i.container(t)
	env := map[string]string{}
	for name, e := range p.env {
		env[name] = k.value(t, e)
		c.Env = append(c.Env, name+"="+env[name])
	}
	for _, a := range p.args {
		for name, v := range env {
			a = strings.ReplaceAll(a, "$("+name+")", v)
		}
		c.Args = append(c.Args, a)
	}
	for place, volume := range p.mounts {
		files := map[string]string{}
		if name, ok := volume.at("configMap", "name").(string); ok {
			data, _ := k.objects["ConfigMap/"+name].at("data").(map[string]any)
			for f, v := range data {
				files[f] = v.(string)
			}
		} else if name, ok := volume.at("secret", "secretName").(string); ok {
			files = k.secrets[name]
		} else {
			continue // the data
		}
		if len(files) == 0 {
			t.Fatalf("nothing to mount at %s: %v", place, volume)
		}
		dir := i.container(t).Mounts["/var/lib/cirrolog"]
		for f, text := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.Mounts[place] = dir
	}
	c.ReadOnly = p.agent.at("securityContext", "readOnlyRootFilesystem").(bool)
	c.User = p.spec.at("securityContext", "runAsUser").(int)
	return c
}

// value resolves a variable.
func (k *podRun) value(t *testing.T, e object) string {
	t.Helper()
	if v, ok := e["value"].(string); ok {
		return v
	}
	switch field, _ := e.at("valueFrom", "fieldRef", "fieldPath").(string); field {
	case "metadata.name":
		return k.name
	case "metadata.namespace":
		return k.namespace
	case "metadata.labels['apps.kubernetes.io/pod-index']":
		return fmt.Sprint(k.index)
	case "metadata.labels['topology.kubernetes.io/zone']":
		return k.zone
	}
	name, _ := e.at("valueFrom", "secretKeyRef", "name").(string)
	key, _ := e.at("valueFrom", "secretKeyRef", "key").(string)
	v, ok := k.secrets[name][key]
	if !ok {
		t.Fatalf("variable %v can't be resolved", e)
	}
	return v
}

// get asks a path at a port in the network of r.
func get(t *testing.T, r *running, port any, path string) (int, string) {
	t.Helper()
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		type dialed struct {
			c   net.Conn
			err error
		}
		done := make(chan dialed)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			f, err := os.Open(r.network)
			if err == nil {
				defer f.Close()
				err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			}
			var c net.Conn
			if err == nil {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			}
			done <- dialed{c, err}
		}()
		d := <-done
		return d.c, d.err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%v%s", port, path))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// services are MinIO and Redis in a network of their own, at their usual ports.
func services(t *testing.T) (network *running) {
	t.Helper()
	needNamespaces(t)
	minio, redis := testenv.Need(t, "minio"), testenv.Need(t, "redis-server")
	network = container{Idle: true}.start(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bucket", "streams"), 0o755); err != nil {
		t.Fatal(err)
	}
	container{Root: "/", Network: network.network, Args: []string{minio, "server", "--quiet", filepath.Join(dir, "bucket")},
		Env: []string{"MINIO_ROOT_USER=streams", "MINIO_ROOT_PASSWORD=streams-secret", "MINIO_BROWSER=off", "HOME=" + dir}}.start(t)
	container{Root: "/", Network: network.network, Args: []string{redis, "--save", "", "--dir", dir}}.start(t)
	awaitStatus(t, network, 9000, "/minio/health/ready")
	return network
}

func awaitStatus(t *testing.T, r *running, port any, path string) {
	t.Helper()
	const limit = 30 * time.Second
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		status, body := get(t, r, port, path)
		if status == http.StatusOK {
			return
		}
		if time.Now().After(end) || !r.Running() {
			t.Fatalf("port %v answers %d to %s after %v: %s\n%s", port, status, path, limit, body, r.log.String())
		}
	}
}

// probe makes what a probe of the agent's container asks, until it succeeds.
func (p *pod) probe(t *testing.T, r *running, name string) {
	t.Helper()
	path, port := p.agent.at(name, "httpGet", "path"), p.agent.at(name, "httpGet", "port")
	for _, at := range p.agent["ports"].([]any) {
		if o := object(at.(map[string]any)); o["name"] == port {
			awaitStatus(t, r, o["containerPort"], path.(string))
			return
		}
	}
	t.Errorf("%s asks port %v, which the container does not have", name, port)
}

// TestPod: a pod of the chart, with the arguments, variables, volumes and rights that Kubernetes would give to it, on
// MinIO and Redis: its probes succeed, it serves, ends by itself in the time that it has, and keeps its node id and
// all records when its disk is lost.
func TestPod(t *testing.T) {
	i := buildImage(t)
	network := services(t)
	objects := render(t, "-f", defaults, "--set", "bucket=s3://streams/prod?endpoint=http://minio:9000&region=us-east-1,metadata.url=,metadata.existingSecret=meta,"+
		"credentials.existingSecret=bucket,rpc.token.existingSecret=rpc,rpc.token.secretKey=word,config.memory-tail=64MiB,config.wal-linger=10ms,firstNodeId=7")
	p := statefulSet(t, objects)
	if n := p.set.at("spec", "ordinals", "start"); n != 7 {
		t.Errorf("the first pod has the ordinal %v", n)
	}
	for what, want := range map[string]bool{
		"runAsNonRoot":             p.spec.at("securityContext", "runAsNonRoot") == true,
		"seccompProfile":           p.spec.at("securityContext", "seccompProfile", "type") == "RuntimeDefault",
		"readOnlyRootFilesystem":   p.agent.at("securityContext", "readOnlyRootFilesystem") == true,
		"allowPrivilegeEscalation": p.agent.at("securityContext", "allowPrivilegeEscalation") == false,
		"capabilities":             p.agent.at("securityContext", "capabilities", "drop", 0) == "ALL",
	} {
		if !want { // the restricted profile of Kubernetes wants these
			t.Errorf("%s of the pod is not restricted", what)
		}
	}
	k := &podRun{name: "events-cirrolog-7", namespace: "streams", zone: "zone-a", index: 7, objects: objects, secrets: map[string]map[string]string{
		"meta": {"url": "redis://redis:6379?namespace=prod"}, "rpc": {"word": "secret"}, "bucket": {"AWS_ACCESS_KEY_ID": "streams", "AWS_SECRET_ACCESS_KEY": "streams-secret"}}}
	host := k.name + ".events-cirrolog-headless.streams.svc.cluster.local"
	start := func() (container, *running) {
		c := k.container(t, i, p)
		c.Network, c.Hosts = network.network, []string{"minio", "redis", host}
		r := c.start(t)
		for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			p.probe(t, r, probe)
		}
		return c, r
	}
	c, r := start()
	if s := r.status(t); s["Uid"] == "0 0 0 0" || s["CapEff"] != "0000000000000000" {
		t.Errorf("uid %s, capabilities %s", s["Uid"], s["CapEff"])
	}
	agents := c.with(r, "cluster", "agents", "-o", "json").must(t, "")
	for _, want := range []string{`"node": 7`, `"host": "` + host + `"`, `"rack": "zone-a"`, `"rpc": "` + host + `:9645"`} {
		if !strings.Contains(agents, want) {
			t.Errorf("no %s in %s", want, agents)
		}
	}
	c.with(r, "produce", "words").must(t, "one\ntwo\n")
	grace := p.spec["terminationGracePeriodSeconds"].(int)
	if stop := 30; grace <= stop {
		t.Errorf("killed after %d s, --shutdown-timeout is %d s", grace, stop)
	}
	r.terminate(t, time.Duration(grace)*time.Second)

	c, r = start()
	var got, errs string
	for end := time.Now().Add(20 * time.Second); got != "one\ntwo\n" && time.Now().Before(end); { // nobody leads its partitions at first
		got, errs, _ = c.with(r, "consume", "words", "-e").run(t, "")
	}
	if got != "one\ntwo\n" {
		t.Errorf("consumed %q of a pod with a new disk: %s", got, errs)
	}
	if agents := c.with(r, "cluster", "agents", "-o", "json").must(t, ""); !strings.Contains(agents, `"node": 7`) || strings.Contains(agents, `"node": 8`) {
		t.Errorf("node 7 has another id with a new disk: %s", agents)
	}
}

// TestServiceLinks: variables that Kubernetes makes of a service named cirrolog would keep the program from starting,
// so pods don't get them.
func TestServiceLinks(t *testing.T) {
	i := buildImage(t)
	p := statefulSet(t, render(t, "-f", defaults))
	if p.spec["enableServiceLinks"] != false {
		t.Error("pods get variables of services")
	}
	c := i.container(t, i.cmd...)
	c.Env = append(c.Env, "CIRROLOG_SERVICE_HOST=10.0.0.1")
	if _, errs, code := c.run(t, ""); code != 2 || !strings.Contains(errs, "unknown variable CIRROLOG_SERVICE_HOST") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
