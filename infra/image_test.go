package infra

import (
	"archive/tar"
	"compress/gzip"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// nonroot is the user of the distroless images.
const nonroot = 65532

// sizeLimit is what the image's files may have in all, in bytes.
const sizeLimit = 48 << 20

// image is what the Dockerfile says, carried out.
type image struct {
	root       string // directory of the file tree
	files      []string
	bytes      int64
	user       int
	entrypoint []string
	cmd        []string
	health     []string
	ports      []string
	volumes    []string
}

// instruction of a Dockerfile: COPY, and what stands behind it.
type instruction struct {
	name, rest string
	flags      map[string]string
}

// dockerfile reads the instructions of a Dockerfile.
func dockerfile(t *testing.T, path string) (out []instruction) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(b), "")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		in := instruction{name: words[0], flags: map[string]string{}}
		words = words[1:]
		for len(words) > 0 && strings.HasPrefix(words[0], "--") {
			k, v, _ := strings.Cut(words[0], "=")
			in.flags[k] = v
			words = words[1:]
		}
		in.rest = strings.Join(words, " ")
		out = append(out, in)
	}
	return out
}

// builtImage carries the Dockerfile out without an engine, once: the RUN instructions of its first stage on this
// machine, the COPYs of its second one onto the files of the base image.
func buildImage(t *testing.T) *image {
	t.Helper()
	needNamespaces(t)
	built.Lock()
	defer built.Unlock()
	if built.image != nil {
		return built.image
	}
	i := &image{}
	base := filepath.Join(testenv.Root(), ".cache", "image-base")
	if _, err := os.Stat(filepath.Join(base, "stamp")); err != nil {
		testenv.Missing(t, "base of the image")
	}
	dir := filepath.Join(testenv.Root(), ".cache", "test", fmt.Sprintf("image-%d", os.Getpid()))
	cleanUp = append(cleanUp, func() { _ = os.RemoveAll(dir) })
	root, out := filepath.Join(dir, "root"), filepath.Join(dir, "out")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "cp -a "+base+"/. "+root+" && rm "+root+"/stamp && chmod 755 "+root)
	stage := 0
	for _, in := range dockerfile(t, "Dockerfile") {
		if in.name == "FROM" {
			stage++
		}
		if stage == 1 {
			buildStage(t, in, out)
		} else {
			i.finalStage(t, in, root, out)
		}
	}
	i.list(t, root)
	i.root, built.image = root, i
	return i
}

var built struct {
	sync.Mutex
	image *image
}

// buildStage carries out one instruction of the stage that compiles.
func buildStage(t *testing.T, in instruction, out string) {
	t.Helper()
	switch in.name {
	case "FROM":
		want := "golang:" + regexp.MustCompile(`go(\d+\.\d+)`).FindStringSubmatch(runtime.Version())[1] + "-"
		if !strings.HasPrefix(in.rest, want) {
			t.Errorf("FROM %s: this Go is %s", in.rest, runtime.Version())
		}
	case "ARG", "WORKDIR":
	case "COPY":
		for _, f := range strings.Fields(in.rest) {
			if _, err := os.Stat(filepath.Join(testenv.Root(), f)); err != nil {
				t.Errorf("COPY %s: %v", in.rest, err)
			}
		}
	case "RUN":
		sh(t, "export TARGETOS=linux TARGETARCH="+runtime.GOARCH+"; "+strings.ReplaceAll(in.rest, "/out/", out+"/"))
	default:
		t.Fatalf("Dockerfile: %s %s: the test can't carry that out", in.name, in.rest)
	}
}

// finalStage carries out one instruction of the image's own stage.
func (i *image) finalStage(t *testing.T, in instruction, root, out string) {
	t.Helper()
	var err error
	switch in.name {
	case "FROM":
		if in.rest != "gcr.io/distroless/static-debian12:nonroot" {
			t.Errorf("FROM %s is not what the test builds on", in.rest)
		}
	case "COPY":
		from, to, _ := strings.Cut(in.rest, " ")
		if in.flags["--from"] != "build" || !strings.HasPrefix(from, "/out/") {
			t.Fatalf("COPY %v %s: the test can't carry that out", in.flags, in.rest)
		}
		owner := in.flags["--chown"]
		if owner == "" {
			owner = "0:0"
		}
		to = filepath.Join(root, to)
		sh(t, fmt.Sprintf("mkdir -p %s && cp -a %s %s && chown -R %s %s", filepath.Dir(to), filepath.Join(out, strings.TrimPrefix(from, "/out/")), to, owner, to))
	case "USER":
		uid, _, _ := strings.Cut(in.rest, ":")
		i.user, err = strconv.Atoi(uid)
	case "ENTRYPOINT":
		err = json.Unmarshal([]byte(in.rest), &i.entrypoint)
	case "CMD":
		err = json.Unmarshal([]byte(in.rest), &i.cmd)
	case "HEALTHCHECK":
		err = json.Unmarshal([]byte(in.rest[strings.Index(in.rest, "["):]), &i.health)
	case "EXPOSE":
		i.ports = strings.Fields(in.rest)
	case "VOLUME":
		i.volumes = strings.Fields(in.rest)
	default:
		t.Fatalf("Dockerfile: %s %s: the test can't carry that out", in.name, in.rest)
	}
	if err != nil {
		t.Fatalf("Dockerfile: %s %s: %v", in.name, in.rest, err)
	}
}

// sh runs a shell command at the root of the repository.
func sh(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = testenv.Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// list takes stock of the tree.
func (i *image) list(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		i.files = append(i.files, "/"+rel)
		if info.Mode().IsRegular() {
			i.bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// container of the image, with a directory for its volume and a read-only root.
func (i *image) container(t *testing.T, args ...string) container {
	t.Helper()
	data := t.TempDir()
	for dir := data; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) { // testing makes them for its user alone
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(data, nonroot, nonroot); err != nil {
		t.Fatal(err)
	}
	return container{Root: i.root, ReadOnly: true, User: i.user, Args: append(i.entrypoint[:1:1], args...),
		Env: []string{"PATH=/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"}, Mounts: map[string]string{"/var/lib/cirrolog": data}}
}

// with returns the container with other arguments for its program, in the same network as r.
func (c container) with(r *running, args ...string) container {
	c.Network, c.Args = r.network, append(c.Args[:1:1], args...)
	return c
}

// awaitHealthy runs the health check until it succeeds, as an engine does.
func awaitHealthy(t *testing.T, r *running, check container) {
	t.Helper()
	const limit = 30 * time.Second
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		_, errs, code := check.run(t, "")
		if code == 0 {
			return
		}
		if code != 1 || !r.Running() || time.Now().After(end) {
			t.Fatalf("not healthy in %v: exit code %d: %s\n%s", limit, code, errs, r.log.String())
		}
	}
}

// TestImageTree: what is in the image, and how large it is.
func TestImageTree(t *testing.T) {
	i := buildImage(t)
	packed := filepath.Join(t.TempDir(), "image.tar.gz")
	compressed := pack(t, i.root, packed)
	t.Logf("%d files, %.1f MiB, %.1f MiB packed by gzip", len(i.files), float64(i.bytes)/(1<<20), float64(compressed)/(1<<20))
	if i.bytes > sizeLimit {
		t.Errorf("the image has %d bytes, at most %d", i.bytes, sizeLimit)
	}
	if i.user != nonroot || len(i.entrypoint) != 1 || len(i.volumes) != 1 {
		t.Errorf("user %d, entrypoint %q, volumes %q", i.user, i.entrypoint, i.volumes)
	}
	have := map[string]bool{}
	for _, f := range i.files {
		have[f] = true
		info, err := os.Lstat(filepath.Join(i.root, f))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().IsRegular() && info.Mode()&0o111 != 0 && f != i.entrypoint[0] {
			t.Errorf("%s is a program too", f)
		}
	}
	for _, f := range []string{"/cirrolog", "/etc/passwd", "/etc/group", "/etc/ssl/certs/ca-certificates.crt", "/usr/share/zoneinfo/Europe/Berlin", "/tmp", "/var/lib/cirrolog"} {
		if !have[f] {
			t.Errorf("%s is missing", f)
		}
	}
	certs, err := os.ReadFile(filepath.Join(i.root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	authorities := 0
	for block, rest := pem.Decode(certs); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			authorities++
		}
	}
	if authorities < 100 {
		t.Errorf("%d authorities", authorities)
	}
}

// pack writes the tree as a layer of an image and returns its size.
func pack(t *testing.T, root, to string) int64 {
	t.Helper()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	if err := w.AddFS(os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestImageServes: the image as it is runs a node without root, with a read-only root file system. Records are
// produced and consumed, also after it was stopped and started anew, and the health check tells what it is.
func TestImageServes(t *testing.T) {
	i := buildImage(t)
	node := i.container(t, i.cmd...)
	r := node.start(t)
	health := node.with(r, i.health[1:]...)
	awaitHealthy(t, r, health)
	status := r.status(t)
	id := strconv.Itoa(nonroot)
	for name, want := range map[string]string{
		"Uid": strings.Repeat(id+" ", 3) + id, "Gid": strings.Repeat(id+" ", 3) + id, "Groups": id, "NoNewPrivs": "1",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000",
	} {
		if status[name] != want {
			t.Errorf("%s of the process: %q, want %q", name, status[name], want)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", r.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\d+ \d+ \S+ \S+ / ro[, ]`).Match(mounts) {
		t.Errorf("the root file system is not read-only:\n%s", mounts)
	}
	lines := "one\ntwo\nthree\n"
	node.with(r, "produce", "words").must(t, lines)
	if got := node.with(r, "consume", "words", "-e").must(t, ""); got != lines {
		t.Errorf("consumed %q, want %q", got, lines)
	}
	for _, port := range i.ports {
		if !listens(t, r, port) {
			t.Errorf("EXPOSE %s: nobody listens there", port)
		}
	}
	r.terminate(t, time.Minute)
	health.Network = "" // nobody is there either
	if _, errs, code := health.run(t, ""); code != 1 || !strings.Contains(errs, "refused") {
		t.Errorf("health of a node that has ended: exit code %d: %s", code, errs)
	}
	r = node.start(t)
	awaitHealthy(t, r, node.with(r, i.health[1:]...))
	if got := node.with(r, "consume", "words", "-e").must(t, ""); got != lines {
		t.Errorf("consumed %q after a restart, want %q", got, lines)
	}
}

// listens tells whether somebody listens on a port in the network of r, on any address.
func listens(t *testing.T, r *running, port string) bool {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", r.Pid(), table))
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(fmt.Sprintf(`(?m)^ *\d+: [0-9A-F]+:%04X [0-9A-F]+:0000 0A `, n)).Match(b) {
			return true
		}
	}
	return false
}

// TestImageRefuses: what can't work in the image ends at once with one line.
func TestImageRefuses(t *testing.T) {
	i := buildImage(t)
	for _, c := range []struct {
		name, want string
		args       []string
		code       int
	}{
		{"a data directory on the read-only root", "read-only file system", []string{"serve", "--data-dir=/data"}, 1},
		{"a data directory of another user", "permission denied", []string{"serve", "--data-dir=/root/data"}, 1},
		{"a verb that there is not", "unknown command", []string{"srve"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs, code := i.container(t, c.args...).run(t, "")
			if code != c.code || !strings.Contains(errs, c.want) {
				t.Errorf("exit code %d, want %d and %q in: %s", code, c.code, c.want, errs)
			}
		})
	}
}
