package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

const exitNoCodec = 3 // a driver's exit code when its library lacks the codec

var errNoCodec = errors.New("the client does not have the codec")

// library is a client library or program under test.
type library struct {
	name, language string
	idempotent     bool
	// fromSystem: the version is the machine's, not one that the repository pins.
	fromSystem bool
	// headers says how the client is limited in them; "" for no limit. sends
	// then makes a record what it can send, reads what it can read.
	headers      string
	sends, reads func(m *made)
	command      func(t *testing.T) maker
}

// maker makes the commands of a library; ready after its needs were found.
type maker interface {
	version() (string, error)
	// produce sends the records [first, first+count) and returns errNoCodec if
	// it can't with this codec.
	produce(t *testing.T, broker, topic, codec string, first, count int) error
	// consume is the command of a member, and how its stdout is read.
	consume(m membership) (*exec.Cmd, func(io.Reader, note) error)
}

// membership is how a member consumes.
type membership struct {
	broker, topic, group string
	session              time.Duration
	cooperative          bool // cooperative-sticky, not what the library has for eager
}

func (m membership) sessionMillis() string { return strconv.FormatInt(m.session.Milliseconds(), 10) }

// note takes a record that a member printed.
type note func(partition int32, offset int64, hash string)

func libraries() []library {
	return []library{
		{name: "kcat (librdkafka)", language: "C", idempotent: true, fromSystem: true, headers: "one set per run", sends: kcatHeaders, command: newKcat},
		{name: "franz-go", language: "Go", idempotent: true, command: goDriver("franz")},
		{name: "sarama", language: "Go", idempotent: true, command: goDriver("sarama")},
		{name: "kafka-go (segmentio)", language: "Go", headers: "empty values read as null", reads: emptyAsNull, command: goDriver("segmentio")},
		{name: "kafkajs", language: "JavaScript", idempotent: true, headers: "no null values", sends: noNullHeaders, command: nodeDriver},
		{name: "kafka-python", language: "Python", idempotent: true, headers: "no null values", sends: noNullHeaders, command: pythonDriver("kafka-python")},
		{name: "aiokafka", language: "Python", idempotent: true, command: pythonDriver("aiokafka")},
		{name: "confluent-kafka", language: "Python, C", idempotent: true, command: pythonDriver("confluent-kafka")},
		{name: "Kafka's console tools", language: "Java", idempotent: true, command: newJava},
	}
}

// id is the name for topics and groups.
func (l library) id() string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, l.name), "-")
}

// want is the record that the library sends for an index.
func (l library) want(i int) made {
	m := makeRecord(i)
	if l.sends != nil {
		l.sends(&m)
	}
	return m
}

func noNullHeaders(m *made) {
	m.headers = slices.DeleteFunc(m.headers, func(h kgo.RecordHeader) bool { return h.Value == nil })
}

func emptyAsNull(m *made) {
	for i := range m.headers {
		if len(m.headers[i].Value) == 0 {
			m.headers[i].Value = nil
		}
	}
}

// driver is a library behind a driver program; see README.md.
type driver struct {
	program    []string
	env        []string
	idempotent bool
}

// buildGo builds the Go driver, once per test process.
var buildGo = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(testenv.Root(), ".cache", "test", fmt.Sprintf("clients.%d", os.Getpid()))
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = filepath.Join(testenv.Root(), "localstack", "e2e", "clients", "go")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the Go driver: %w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := buildGo(); err == nil {
		_ = os.Remove(bin) // left behind at worst
	}
	os.Exit(code)
}

func goDriver(name string) func(*testing.T) maker {
	return func(t *testing.T) maker {
		bin, err := buildGo()
		if err != nil {
			t.Fatal(err)
		}
		return driver{program: []string{bin, name}, idempotent: name != "segmentio"}
	}
}

// installed returns a directory that `make deps` makes.
func installed(t *testing.T, name, what string) string {
	t.Helper()
	dir := filepath.Join(testenv.Root(), ".cache", "clients", name)
	if _, err := os.Stat(filepath.Join(dir, "stamp")); err != nil {
		testenv.Missing(t, what)
	}
	return dir
}

func source(language, file string) string {
	return filepath.Join(testenv.Root(), "localstack", "e2e", "clients", language, file)
}

func pythonDriver(name string) func(*testing.T) maker {
	return func(t *testing.T) maker {
		python := filepath.Join(installed(t, "python", name), "bin", "python")
		return driver{program: []string{python, source("python", "driver.py"), name}, idempotent: true}
	}
}

func nodeDriver(t *testing.T) maker {
	dir := installed(t, "node", "kafkajs")
	return driver{program: []string{testenv.Need(t, "node"), source("node", "driver.js"), "kafkajs"}, env: []string{"CLIENTS_NODE=" + dir}, idempotent: true}
}

func (d driver) cmd(args ...string) *exec.Cmd {
	all := append(d.program[1:len(d.program):len(d.program)], args...)
	cmd := exec.Command(d.program[0], all...)
	cmd.Env = append(os.Environ(), d.env...)
	return cmd
}

func (d driver) version() (string, error) {
	cmd := d.cmd("version")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	var v struct {
		Version string `json:"version"`
	}
	return v.Version, json.Unmarshal(out, &v)
}

func (d driver) produce(t *testing.T, broker, topic, codec string, first, count int) error {
	args := []string{"produce", "--brokers", broker, "--topic", topic, "--codec", codec, "--first", strconv.Itoa(first), "--count", strconv.Itoa(count)}
	if d.idempotent {
		args = append(args, "--idempotent")
	}
	return runProducer(t.Context(), d.cmd(args...), nil)
}

// runProducer runs a producer to its end.
func runProducer(ctx context.Context, cmd *exec.Cmd, stdin func(io.Writer) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var stderr bytes.Buffer
	bound := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	bound.Env, bound.Stderr = cmd.Env, &stderr
	var fed chan error
	if stdin != nil {
		in, out := io.Pipe()
		bound.Stdin, fed = in, make(chan error, 1)
		go func() {
			w := bufio.NewWriterSize(out, 1<<20)
			err := errors.Join(stdin(w), w.Flush())
			fed <- errors.Join(err, out.Close())
		}()
		defer in.Close()
	}
	err := bound.Run()
	if bound.ProcessState != nil && bound.ProcessState.ExitCode() == exitNoCodec {
		return errNoCodec
	}
	if err == nil && fed != nil {
		err = <-fed
	}
	if err != nil {
		return fmt.Errorf("produce: %w: %s", err, stderr.Bytes()[max(0, stderr.Len()-4096):])
	}
	return nil
}

func (d driver) consume(m membership) (*exec.Cmd, func(io.Reader, note) error) {
	args := []string{"consume", "--brokers", m.broker, "--topic", m.topic, "--group", m.group, "--session-ms", m.sessionMillis()}
	if m.cooperative {
		args = append(args, "--cooperative")
	}
	return d.cmd(args...), parseLines
}

// parseLines reads what drivers print: [PARTITION,OFFSET,"HASH"].
func parseLines(r io.Reader, each note) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil // its end, which may be a kill in the middle of a line
		}
		f := strings.Split(strings.Trim(line, "[]\n"), ",")
		if len(f) != 3 {
			return fmt.Errorf("printed %q", line)
		}
		partition, err1 := strconv.ParseInt(f[0], 10, 32)
		offset, err2 := strconv.ParseInt(f[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("printed %q: %w", line, err)
		}
		each(int32(partition), offset, strings.Trim(f[2], `"`))
	}
}

// kcat, which is librdkafka.
type kcat struct{ path string }

func newKcat(t *testing.T) maker { return kcat{testenv.Need(t, "kcat")} }

// kcatHeaders: kcat sends the same headers with all records.
func kcatHeaders(m *made) {
	m.headers = []kgo.RecordHeader{{Key: "n", Value: []byte("x")}, {Key: "n", Value: []byte("again")}, {Key: "empty", Value: []byte{}}, {Key: "null"}}
}

func (k kcat) version() (string, error) {
	out, err := exec.Command(k.path, "-V").Output()
	_, after, ok := strings.Cut(string(out), "Version ")
	if err != nil || !ok {
		return "", fmt.Errorf("kcat -V: %w: %s", err, out)
	}
	own, _, _ := strings.Cut(after, " ")
	_, after, _ = strings.Cut(after, "librdkafka ")
	lib, _, _ := strings.Cut(after, " ")
	return own + " (" + lib + ")", nil
}

func (k kcat) produce(t *testing.T, broker, topic, codec string, first, count int) error {
	args := []string{"-P", "-b", broker, "-t", topic, "-Z", "-K", `\x1f`, "-D", `\x1e`, "-z", codec, "-X", "acks=all", "-X", "enable.idempotence=true", "-X", "linger.ms=20",
		"-X", "message.max.bytes=2097152", "-H", "n=x", "-H", "n=again", "-H", "empty=", "-H", "null"}
	return runProducer(t.Context(), exec.Command(k.path, args...), func(w io.Writer) error {
		for i := first; i < first+count; i++ {
			m := makeRecord(i)
			if _, err := fmt.Fprintf(w, "%s\x1f%s\x1e", m.key, m.value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (k kcat) consume(m membership) (*exec.Cmd, func(io.Reader, note) error) {
	strategy := "range"
	if m.cooperative {
		strategy = "cooperative-sticky"
	}
	cmd := exec.Command(k.path, "-q", "-u", "-b", m.broker, "-G", m.group, "-f", `%p %o %K %S %h\n%k%s\n`, "-X", "auto.offset.reset=earliest", "-X", "auto.commit.interval.ms=200",
		"-X", "session.timeout.ms="+m.sessionMillis(), "-X", "heartbeat.interval.ms=1000", "-X", "partition.assignment.strategy="+strategy, m.topic)
	return cmd, parseKcat
}

// parseKcat reads PARTITION OFFSET KEY-SIZE VALUE-SIZE HEADERS, and the next
// line with key and value.
func parseKcat(r io.Reader, each note) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil // its end, which may be a kill
		}
		var partition int32
		var offset int64
		var key, value int
		if _, err := fmt.Sscanf(line, "%d %d %d %d", &partition, &offset, &key, &value); err != nil {
			return fmt.Errorf("kcat printed %.100q: %w", line, err)
		}
		body := make([]byte, max(key, 0)+max(value, 0)+1)
		if _, err := io.ReadFull(in, body); err != nil {
			return nil
		}
		var m made
		if key >= 0 {
			m.key = body[:key]
		}
		if value >= 0 {
			m.value = body[max(key, 0) : len(body)-1]
		}
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5); len(f) == 5 && f[4] != "" {
			m.headers = parseHeaders(f[4], "=", "NULL")
		}
		each(partition, offset, hash(partition, offset, m))
	}
}

// parseHeaders reads NAME:VALUE,… with another separator and word for null.
func parseHeaders(s, separator, null string) (out []kgo.RecordHeader) {
	for h := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(h, separator)
		header := kgo.RecordHeader{Key: name}
		if value != null {
			header.Value = []byte(value)
		}
		out = append(out, header)
	}
	return out
}

// java is Kafka's own console producer and consumer.
type java struct{ script string }

func newJava(t *testing.T) maker {
	testenv.Need(t, "java")
	testenv.Need(t, "mvn")
	return java{filepath.Join(testenv.Root(), "localstack", "bench", "kafka", "kafka.sh")}
}

func (j java) tool(class string, args ...string) *exec.Cmd {
	cmd := exec.Command("bash", append([]string{j.script, "tool", class}, args...)...)
	cmd.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx384m -Dfile.encoding=UTF-8")
	return cmd
}

func (j java) version() (string, error) {
	out, err := j.tool("org.apache.kafka.tools.ConsoleProducer", "--version").Output()
	v, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	return v, err
}

func (j java) produce(t *testing.T, broker, topic, codec string, first, count int) error {
	cmd := j.tool("org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", broker, "--topic", topic, "--compression-codec", codec, "--batch-size", "65536",
		"--reader-property", "parse.key=true", "--reader-property", "parse.headers=true", "--reader-property", "null.marker="+nobody,
		"--command-property", "enable.idempotence=true", "--command-property", "acks=all", "--command-property", "linger.ms=20",
		"--command-property", "max.request.size=2097152", "--command-property", "buffer.memory=67108864")
	orNull := func(b []byte) string {
		if b == nil {
			return nobody
		}
		return string(b)
	}
	return runProducer(t.Context(), cmd, func(w io.Writer) error {
		for i := first; i < first+count; i++ {
			m := makeRecord(i)
			headers := nobody
			if m.headers != nil {
				var all []string
				for _, h := range m.headers {
					all = append(all, h.Key+":"+orNull(h.Value))
				}
				headers = strings.Join(all, ",")
			}
			if _, err := fmt.Fprintf(w, "%s\t%s\t%s\n", headers, orNull(m.key), orNull(m.value)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (j java) consume(m membership) (*exec.Cmd, func(io.Reader, note) error) {
	strategy := "org.apache.kafka.clients.consumer.RangeAssignor"
	if m.cooperative {
		strategy = "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"
	}
	args := []string{"--bootstrap-server", m.broker, "--topic", m.topic, "--group", m.group, "--from-beginning"}
	for _, p := range []string{"print.partition=true", "print.offset=true", "print.headers=true", "print.key=true", "null.literal=" + nobody} {
		args = append(args, "--formatter-property", p)
	}
	for _, p := range []string{"session.timeout.ms=" + m.sessionMillis(), "heartbeat.interval.ms=1000", "auto.commit.interval.ms=200", "partition.assignment.strategy=" + strategy} {
		args = append(args, "--command-property", p)
	}
	return j.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", args...), parseJava
}

// parseJava reads Partition:P, Offset:O, headers, key and value between tabs.
func parseJava(r io.Reader, each note) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil // its end, which may be a kill
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			if strings.HasPrefix(line, "Processed a total") {
				continue
			}
			return fmt.Errorf("the console consumer printed %.100q", line)
		}
		partition, err1 := strconv.ParseInt(strings.TrimPrefix(f[0], "Partition:"), 10, 32)
		offset, err2 := strconv.ParseInt(strings.TrimPrefix(f[1], "Offset:"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("the console consumer printed %.100q: %w", line, err)
		}
		var m made
		if f[2] != "NO_HEADERS" {
			m.headers = parseHeaders(f[2], ":", nobody)
		}
		if f[3] != nobody {
			m.key = []byte(f[3])
		}
		if f[4] != nobody {
			m.value = []byte(f[4])
		}
		each(int32(partition), offset, hash(int32(partition), offset, m))
	}
}
