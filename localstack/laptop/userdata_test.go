package laptop

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// userData renders the user data of modules/agents: the files that it writes.
func userData(t *testing.T) map[string]string {
	t.Helper()
	dir, tofu := terraform(t)
	in := filepath.Join(dir, "modules", "agents")
	if out, err := tofu(in, "get", "-no-color"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	args := []string{"console", "-no-color"}
	for _, v := range []string{
		"name=prod", "bucket_url=s3://a-bucket/eu?region=eu-central-1", "metadata_url=rediss://:pa$$word%26<x>!@host:6379", "vpc_id=vpc-1", `subnets={"eu-central-1a":"subnet-a"}`,
		`security_group_ids=["sg-1"]`, "role_name=prod-agent", "instance_profile=prod-agent", "program_url=s3://releases/cirrolog", "program_sha256=" + strings.Repeat("0", 64),
		`flags={"wal-linger":"250ms","topic-config":"retention.ms=1000,segment.bytes=1048576"}`,
	} {
		args = append(args, "-var", v)
	}
	out, err := tofu(in, append(args, "nonsensitive(base64encode(local.user_data))")...)
	found := regexp.MustCompile(`"([A-Za-z0-9+/=]{1000,})"`).FindStringSubmatch(out)
	if err != nil || found == nil {
		t.Fatalf("tofu console: %v\n%s", err, out)
	}
	text, err := base64.StdEncoding.DecodeString(found[1])
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Files []struct{ Path, Permissions, Content string } `json:"write_files"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(text, []byte("#cloud-config\n")), &config); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range config.Files {
		files[f.Path] = f.Content
		if mode := map[string]string{".sh": "0755", ".env": f.Permissions}[filepath.Ext(f.Path)]; f.Permissions != cmp.Or(mode, "0644") {
			t.Errorf("%s has the permissions %s", f.Path, f.Permissions)
		}
	}
	return files
}

// instance is an EC2 instance as the scripts see it: files, IMDS, and programs that note how they are called.
type instance struct {
	t    *testing.T
	root string
	imds string
	mu   sync.Mutex
	meta map[string]string // of IMDS by path; what is not there is 404
}

// fakes are the programs of the system; $CALLS has how they were called. What they find is in files of $ROOT/fake.
var fakes = map[string]string{
	"mountpoint": `test -e "$ROOT/fake/mounted"`,
	"mount":      `touch "$ROOT/fake/mounted"`,
	"blkid":      `test -e "$ROOT/fake/labelled" && cat "$ROOT/fake/labelled"`,
	"lsblk":      `cat "$ROOT/fake/disks"`,
	"mkfs.xfs":   `echo "${@: -1}" > "$ROOT/fake/labelled"`,
	"dnf":        `cp "$ROOT/fake/mdadm" "$ROOT/bin/mdadm"`,
	"rpm":        `install -m 0755 "${@: -1}" "$ROOT/usr/bin/cirrolog"`,
	"systemctl":  ``,
	"real-mdadm": ``,
	"aws":        `case "$1 $2" in "s3 cp") cp "$ROOT/fake/program" "$5";; "secretsmanager get-secret-value") cat "$ROOT/fake/secret";; esac && ! test -e "$ROOT/fake/no-network"`,
}

func newInstance(t *testing.T, files map[string]string) *instance {
	t.Helper()
	i := &instance{t: t, root: t.TempDir(), meta: map[string]string{
		"local-ipv4": "10.64.16.7", "placement/availability-zone": "eu-central-1b", "placement/region": "eu-central-1", "instance-id": "i-7", "autoscaling/target-lifecycle-state": "InService",
	}}
	for path, text := range files {
		i.write(path, text)
	}
	for name, body := range fakes {
		to := "bin/" + name
		if name == "real-mdadm" {
			to, name = "fake/mdadm", "mdadm" // it is not there before it is installed
		}
		i.write(to, "#!/bin/bash\necho \""+name+" $*\" >> \"$ROOT/calls\"\n"+body+"\n")
	}
	i.write("fake/disks", "/dev/nvme0n1 Amazon Elastic Block Store\n/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n")
	i.write("fake/program", "the program")
	i.write("usr/bin/keep", "")
	s := httptest.NewServer(http.HandlerFunc(i.serveIMDS))
	t.Cleanup(s.Close)
	i.imds = s.URL
	return i
}

func (i *instance) write(path, text string) {
	i.t.Helper()
	path = filepath.Join(i.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		i.t.Fatal(err)
	}
	mode := os.FileMode(0o644)
	if strings.HasPrefix(text, "#!") {
		mode = 0o755
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		i.t.Fatal(err)
	}
}

func (i *instance) read(path string) string {
	b, _ := os.ReadFile(filepath.Join(i.root, path))
	return string(b)
}

// settle changes instance.env.
func (i *instance) settle(name, value string) {
	i.write("etc/cirrolog/instance.env", regexp.MustCompile(name+"='[^']*'").ReplaceAllLiteralString(i.read("etc/cirrolog/instance.env"), name+"='"+value+"'"))
}

// serveIMDS is version 2 of the service alone: it wants a token.
func (i *instance) serveIMDS(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/latest/meta-data/")
	answer, found := i.meta[path]
	switch {
	case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "":
		fmt.Fprint(w, "a token")
	case r.Header.Get("X-aws-ec2-metadata-token") != "a token":
		w.WriteHeader(http.StatusUnauthorized)
	case !ok || !found:
		w.WriteHeader(http.StatusNotFound)
	default:
		fmt.Fprint(w, answer)
	}
}

func (i *instance) set(path, value string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.meta[path] = value
}

func (i *instance) command(script string) *exec.Cmd {
	cmd := exec.Command("bash", filepath.Join(i.root, "usr/local/lib/cirrolog", script))
	cmd.Env = append(os.Environ(), "ROOT="+i.root, "IMDS="+i.imds, "PAUSE=0.01", "PATH="+filepath.Join(i.root, "bin")+":"+os.Getenv("PATH"), "no_proxy=127.0.0.1")
	return cmd
}

// run runs a script to its end: its output, and how programs were called.
func (i *instance) run(script string) (out, calls string, err error) {
	i.t.Helper()
	if err := os.RemoveAll(filepath.Join(i.root, "calls")); err != nil {
		i.t.Fatal(err)
	}
	b, err := i.command(script).CombinedOutput()
	return string(b), i.read("calls"), err
}

// TestUserData: systemd reads the units, the scripts are bash, and all flags are the program's.
func TestUserData(t *testing.T) {
	t.Parallel()
	files := userData(t)
	own, err := os.ReadFile(filepath.Join(testenv.Root(), "infra/systemd/cirrolog@.service"))
	if err != nil {
		t.Fatal(err)
	}
	if files["/etc/systemd/system/cirrolog@.service"] != string(own) {
		t.Error("terraform/modules/agents/files has another cirrolog@.service than infra/systemd")
	}
	i := newInstance(t, files)
	for _, name := range []string{"setup.sh", "drain.sh"} {
		if out, err := exec.Command("bash", "-n", filepath.Join(i.root, "usr/local/lib/cirrolog", name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	i.write("usr/bin/cirrolog", "#!/bin/bash\n")
	if analyze, err := exec.LookPath("systemd-analyze"); err != nil {
		testenv.Missing(t, "systemd-analyze")
	} else if err := os.CopyFS(filepath.Join(i.root, "usr/lib/systemd/system"), os.DirFS("/usr/lib/systemd/system")); err == nil || os.IsNotExist(err) {
		out, err := exec.Command(analyze, "verify", "--man=no", "--root="+i.root, "cirrolog@agent.service", "cirrolog-setup.service", "cirrolog-drain.service").CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
	help, err := exec.Command(testenv.Binary(t), "agent", "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^"([a-z-]+)":`).FindAllStringSubmatch(files["/etc/cirrolog/flags.yaml"]+"\"advertised-addr\":\n\"rpc-advertised-addr\":\n\"rack\":\n", -1)
	if len(names) != 11 {
		t.Errorf("flags: %v", names)
	}
	for _, m := range names {
		if !regexp.MustCompile(`(?m)^ +--` + m[1] + `\b`).Match(help) {
			t.Errorf("cirrolog agent has no flag %s", m[1])
		}
	}
	if env, want := files["/etc/cirrolog/agent.env"], "CIRROLOG_METADATA='rediss://:pa$$word%26<x>!@host:6379'\n"; env != want {
		t.Errorf("agent.env %q, want %q", env, want)
	}
}

// TestSetup: an instance gets its disk, the program and its flags, at the first boot and at each other one.
func TestSetup(t *testing.T) {
	t.Parallel()
	files := userData(t)
	fresh := func(t *testing.T) *instance {
		i := newInstance(t, files)
		i.settle("PROGRAM_SHA256", sha(t, i.root+"/fake/program"))
		return i
	}
	const at = "/var/lib/private/cirrolog"
	t.Run("boots", func(t *testing.T) {
		i := fresh(t)
		for boot, want := range []string{
			"mountpoint -q R" + at + "\nblkid -L cirrolog\nlsblk -dnpo NAME,MODEL\nmkfs.xfs -q -f -L cirrolog /dev/nvme1n1\nmount -o noatime /dev/nvme1n1 R" + at + "\naws s3 cp --only-show-errors s3://releases/cirrolog T\n",
			"mountpoint -q R" + at + "\nblkid -L cirrolog\nmount -o noatime /dev/nvme1n1 R" + at + "\n", // after a reboot
			"mountpoint -q R" + at + "\n", // started again
		} {
			out, calls, err := i.run("setup.sh")
			calls = regexp.MustCompile(`/\S*/file\b`).ReplaceAllString(strings.ReplaceAll(calls, i.root, "R"), "T")
			if err != nil || calls != want {
				t.Fatalf("boot %d: %v\n%s\ncalls:\n%swant:\n%s", boot, err, out, calls, want)
			}
			if boot == 0 {
				if err := os.Remove(i.root + "/fake/mounted"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i.read("usr/bin/cirrolog") != "the program" {
			t.Error("the program is not installed")
		}
		want := files["/etc/cirrolog/flags.yaml"] + "\"advertised-addr\": \"10.64.16.7:9092\"\n\"rpc-advertised-addr\": \"10.64.16.7:9645\"\n\"rack\": \"eu-central-1b\"\n"
		if got := i.read("etc/cirrolog/agent.yaml"); got != want {
			t.Errorf("agent.yaml:\n%s\nwant:\n%s", got, want)
		}
	})
	t.Run("several disks", func(t *testing.T) {
		i := fresh(t)
		i.write("fake/disks", "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n/dev/nvme2n1 Amazon EC2 NVMe Instance Storage\n")
		out, calls, err := i.run("setup.sh")
		if err != nil || !strings.Contains(calls, "dnf install -q -y mdadm\nmdadm --create /dev/md/cirrolog --run --level=0 --raid-devices=2 /dev/nvme1n1 /dev/nvme2n1\nmkfs.xfs -q -f -L cirrolog /dev/md/cirrolog\nmount ") {
			t.Errorf("%v\n%s\n%s", err, out, calls)
		}
	})
	t.Run("package and archive", func(t *testing.T) {
		for _, url := range []string{"s3://releases/cirrolog.rpm", "s3://releases/cirrolog_1_linux_arm64.tar.gz"} {
			i := fresh(t)
			i.settle("PROGRAM_URL", url)
			if strings.HasSuffix(url, ".tar.gz") {
				i.write("release/cirrolog_1/cirrolog", "the program")
				if out, err := exec.Command("tar", "-czf", i.root+"/fake/program", "-C", i.root+"/release", "cirrolog_1").CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				i.settle("PROGRAM_SHA256", sha(t, i.root+"/fake/program"))
			}
			if out, calls, err := i.run("setup.sh"); err != nil || i.read("usr/bin/cirrolog") != "the program" {
				t.Errorf("%s: %v\n%s\n%s", url, err, out, calls)
			}
		}
	})
	t.Run("by HTTP, at the third time", func(t *testing.T) {
		i, asked := fresh(t), 0
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked++; asked < 3 {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			fmt.Fprint(w, "the program")
		}))
		defer s.Close()
		i.settle("PROGRAM_URL", s.URL+"/cirrolog")
		if out, _, err := i.run("setup.sh"); err != nil || i.read("usr/bin/cirrolog") != "the program" || asked != 3 {
			t.Errorf("%v, asked %d times\n%s", err, asked, out)
		}
	})
	t.Run("secret", func(t *testing.T) {
		i := fresh(t)
		i.settle("METADATA_SECRET", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:m")
		i.write("fake/secret", "rediss://:word@host:6379\n")
		if err := os.Remove(i.root + "/etc/cirrolog/agent.env"); err != nil {
			t.Fatal(err)
		}
		out, _, err := i.run("setup.sh")
		if err != nil || i.read("etc/cirrolog/agent.env") != "CIRROLOG_METADATA='rediss://:word@host:6379'\n" {
			t.Fatalf("%v\n%s\n%s", err, out, i.read("etc/cirrolog/agent.env"))
		}
		if st, err := os.Stat(i.root + "/etc/cirrolog/agent.env"); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("agent.env: %v, %v", st.Mode(), err)
		}
	})
	for name, c := range map[string]struct {
		spoil func(*instance)
		want  string
	}{
		"no disk":       {func(i *instance) { i.write("fake/disks", "/dev/nvme0n1 Amazon Elastic Block Store\n") }, "no instance store"},
		"other program": {func(i *instance) { i.write("fake/program", "another") }, "as Terraform was told"},
		"no network":    {func(i *instance) { i.write("fake/no-network", "") }, "fetching s3://releases/cirrolog: not in ten minutes"},
		"no secret":     {func(i *instance) { i.settle("METADATA_SECRET", "arn"); i.write("fake/secret", "it's\n") }, "is no URL of a metadata store"},
	} {
		t.Run(name, func(t *testing.T) {
			i := fresh(t)
			c.spoil(i)
			out, calls, err := i.run("setup.sh")
			if err == nil || !strings.Contains(out, c.want) {
				t.Errorf("%v, want %q\n%s\n%s", err, c.want, out, calls)
			}
			if name != "no secret" && i.read("usr/bin/cirrolog") != "" {
				t.Error("a program is installed")
			}
		})
	}
}

func sha(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("sha256sum", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out[:64])
}

// TestDrain: the agent is stopped when the instance is to go, and not before; then Auto Scaling is told.
func TestDrain(t *testing.T) {
	t.Parallel()
	files := userData(t)
	const told = "aws autoscaling complete-lifecycle-action --region eu-central-1 --cli-connect-timeout 5 --cli-read-timeout 10 " +
		"--auto-scaling-group-name prod --lifecycle-hook-name prod-drain --instance-id i-7 --lifecycle-action-result CONTINUE\n"
	const stopped = "systemctl stop cirrolog@agent.service\n"
	for name, c := range map[string]struct {
		path, value string
		offline     bool
		calls, out  string
	}{
		"terminated":       {"autoscaling/target-lifecycle-state", "Terminated", false, stopped + told, "Auto Scaling terminates"},
		"spot":             {"spot/instance-action", `{"action":"terminate","time":"2026-11-22T12:00:00Z"}`, false, stopped + told, "takes this spot instance back"},
		"terminated alone": {"autoscaling/target-lifecycle-state", "Terminated", true, stopped + told + told + told, "can't be told"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInstance(t, files)
			if c.offline {
				i.write("fake/no-network", "")
			}
			cmd := i.command("drain.sh")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			p, err := testenv.StartProcess(cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			time.Sleep(300 * time.Millisecond) // some rounds
			if calls := i.read("calls"); calls != "" {
				t.Errorf("before its end: %s", calls)
			}
			i.set(c.path, c.value)
			select {
			case <-p.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("it does not end")
			}
			if calls := i.read("calls"); p.Err() != nil || calls != c.calls || !strings.Contains(out.String(), c.out) {
				t.Errorf("%v\n%s\ncalls:\n%swant:\n%s", p.Err(), out.String(), calls, c.calls)
			}
		})
	}
}
