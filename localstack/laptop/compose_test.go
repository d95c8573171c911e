package laptop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// engine is a stand-in for `docker` that notes what it is told and has the servers of Compose's services as processes, on the
// ports that the file is given: it shows what localstack.sh does with an engine, not what is in the images.
const engine = `#!/bin/bash
echo "$*" >> "$NOTED"
here=$ROOT/localstack
case "$*" in
*" up "*)
  [ -z "${BROKEN:-}" ] || { echo "Error response from daemon: pull access denied"; exit 1; }
  MINIO_ROOT_USER=cirrolog MINIO_ROOT_PASSWORD=cirrolog-secret "$ROOT/.cache/bin/minio" server --quiet --address "127.0.0.1:$MINIO_PORT" --console-address 127.0.0.1:0 "$LOCALSTACK_DIR/volume" &
  PATH=$ROOT/.cache/bin:$PATH redis-server --port "$REDIS_PORT" --save "" &
  "$here/dynamodb/dynamodb.sh" run "$DYNAMODB_PORT" &
  "$here/emulator/run.sh" moto "$AWS_PORT" "$LOCALSTACK_DIR/volume" &
  trap 'kill $(jobs -p); wait; exit 0' TERM
  wait -n; kill $(jobs -p); exit 1 ;;
esac
`

// docker puts the stand-in before PATH and returns what tells what it was told.
func (l *laptop) docker(broken string) (noted func() string) {
	l.t.Helper()
	dir := l.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(engine), 0o755); err != nil {
		l.t.Fatal(err)
	}
	l.env = append(l.env, "ENGINE=", "PATH="+dir+":"+os.Getenv("PATH"), "ROOT="+testenv.Root(), "NOTED="+filepath.Join(dir, "noted"), "BROKEN="+broken)
	return func() string {
		b, err := os.ReadFile(filepath.Join(dir, "noted"))
		if err != nil {
			l.t.Fatal(err)
		}
		return string(b)
	}
}

// TestEngine: with an engine of Docker the servers are Compose's, one that can't start them is done without, and both leave
// nothing.
func TestEngine(t *testing.T) {
	t.Parallel()
	t.Run("there", func(t *testing.T) {
		l := newLaptop(t)
		noted := l.docker("")
		if out := l.must("up"); !strings.Contains(out, "AWS emulator by Docker Compose\n") {
			t.Errorf("up says:\n%s", out)
		}
		if _, err := os.Stat(filepath.Join(l.dir, "minio.pid")); err == nil {
			t.Error("MinIO runs without Compose")
		}
		l.cirrolog("", "topic", "create", "words", "-p", "1")
		l.cirrolog("a\nb\n", "produce", "words")
		if got := l.cirrolog("", "consume", "words", "-o", "start", "-e"); got != "a\nb\n" {
			t.Errorf("consumed %q", got)
		}
		l.down(4)
		var verbs []string
		for line := range strings.Lines(noted()) {
			args := strings.Fields(line)
			if args[0] == "compose" && len(args) > 2 {
				if want := "-f localstack/compose.yaml --profile minio"; !strings.HasPrefix(line, "compose -p cirrolog-") || !strings.Contains(line, want) {
					t.Errorf("docker %s", line)
				}
				args = args[7:]
			}
			verbs = append(verbs, strings.Join(args, " "))
		}
		if got := strings.Join(verbs, "; "); got != "info; compose version; up --no-color --abort-on-container-exit; down --volumes" {
			t.Errorf("docker was told: %s", got)
		}
	})
	t.Run("broken", func(t *testing.T) {
		l := newLaptop(t, "CIRROLOG="+filepath.Join(binWith(t, "cirrolog", "echo 'error: no disk'; exit 1"), "cirrolog"))
		noted := l.docker("1")
		out, code := l.sh("up")
		l.refused(out, code, "localstack: agent1 ended while starting: error: no disk (")
		if !strings.Contains(out, "localstack: starting without Docker Compose, which fails: compose ended while starting: Error response from daemon: pull access denied (") {
			t.Errorf("up says:\n%s", out)
		}
		if n := strings.Count(noted(), " down --volumes"); n != 1 {
			t.Errorf("down %d times:\n%s", n, noted())
		}
		l.nothingLeft()
		l.env = append(l.env, "ENGINE=docker")
		out, code = l.sh("up")
		l.refused(out, code, "localstack: compose ended while starting: Error response from daemon: pull access denied (")
		l.nothingLeft()
	})
}

// TestComposeFile: Compose takes the file; its services have fixed versions and publish, on loopback, the ports of localstack.sh.
func TestComposeFile(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(testenv.Need(t, "compose"), filepath.Join(testenv.Root(), "localstack", "compose.yaml"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "MINIO_PORT=1", "REDIS_PORT=2", "DYNAMODB_PORT=3", "AWS_PORT=4"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var p struct {
		Services map[string]struct {
			Image string
			Ports []struct {
				Target    int
				Published string
				HostIP    string `json:"host_ip"`
			}
		}
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(testenv.Root(), filepath.FromSlash(path)))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	// The version of each is that which is installed without containers.
	for name, want := range map[string]struct{ port, text, in string }{
		"minio":      {"1", "image: %s\n", "infra/compose.yaml"},
		"localstack": {"1", "localstack-core==%s\n", "localstack/emulator/requirements.txt"},
		"redis":      {"2", "image: redis:%s\n", "infra/compose.yaml"},
		"dynamodb":   {"3", "<version>%s</version>", "localstack/dynamodb/pom.xml"},
		"aws":        {"4", "moto==%s\n", "localstack/moto/requirements.txt"},
	} {
		s := p.Services[name]
		delete(p.Services, name)
		version := s.Image
		if name != "minio" {
			version = s.Image[strings.LastIndex(s.Image, ":")+1:]
		}
		if !strings.Contains(read(want.in), fmt.Sprintf(want.text, version)) {
			t.Errorf("%s: the version of %s is not that in %s", name, s.Image, want.in)
		}
		if len(s.Ports) != 1 || s.Ports[0].HostIP != "127.0.0.1" || s.Ports[0].Published != want.port {
			t.Errorf("%s publishes %+v", name, s.Ports)
		}
	}
	if len(p.Services) > 0 {
		t.Errorf("services that nobody looks at: %v", p.Services)
	}
}
