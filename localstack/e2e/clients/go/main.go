// Program clients is the driver of three Go client libraries for the client
// matrix: franz, sarama and segmentio. It is a module of its own, so that the
// libraries are no dependencies of Cirrolog. Its command line is that of the
// other drivers, see ../README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

// errCodec means that the library does not have the codec; the exit code is 3.
var errCodec = errors.New("the client does not have this codec")

// produceOptions of one run.
type produceOptions struct {
	brokers, topic, codec string
	idempotent            bool
	first, count          int
}

// consumeOptions of one member.
type consumeOptions struct {
	brokers, topic, group string
	session               time.Duration
	cooperative           bool
}

// library is what a driver makes of a client library.
type library struct {
	module  string
	produce func(ctx context.Context, o produceOptions) error
	// consume reads until ctx is done, prints each record before it commits it,
	// then leaves the group.
	consume func(ctx context.Context, o consumeOptions, out *printer) error
}

func libraries() map[string]library {
	return map[string]library{
		"franz":     {"github.com/twmb/franz-go", franzProduce, franzConsume},
		"sarama":    {"github.com/IBM/sarama", saramaProduce, saramaConsume},
		"segmentio": {"github.com/segmentio/kafka-go", segmentioProduce, segmentioConsume},
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.Is(err, errCodec) {
			os.Exit(3)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: clients LIBRARY version|produce|consume FLAGS")
	}
	lib, ok := libraries()[args[0]]
	if !ok {
		return fmt.Errorf("no library %q", args[0])
	}
	var p produceOptions
	var c consumeOptions
	f := flag.NewFlagSet(args[1], flag.ContinueOnError)
	brokers, topic := f.String("brokers", "", "HOST:PORT"), f.String("topic", "", "topic")
	f.StringVar(&p.codec, "codec", "none", "none, gzip, snappy, lz4 or zstd")
	f.BoolVar(&p.idempotent, "idempotent", false, "with idempotence, if the library has it")
	f.IntVar(&p.first, "first", 0, "index of the first record")
	f.IntVar(&p.count, "count", 0, "number of records")
	f.StringVar(&c.group, "group", "", "group")
	session := f.Int("session-ms", 6000, "session timeout")
	f.BoolVar(&c.cooperative, "cooperative", false, "cooperative-sticky, if the library has it")
	if err := f.Parse(args[2:]); err != nil {
		return err
	}
	p.brokers, p.topic, c.brokers, c.topic = *brokers, *topic, *brokers, *topic
	c.session = time.Duration(*session) * time.Millisecond
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch args[1] {
	case "version":
		return printVersion(lib.module)
	case "produce":
		return lib.produce(ctx, p)
	case "consume":
		return lib.consume(ctx, c, &printer{w: bufio.NewWriter(os.Stdout)})
	}
	return fmt.Errorf("no command %q", args[1])
}

func printVersion(module string) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("no build info")
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return json.NewEncoder(os.Stdout).Encode(map[string]string{"version": strings.TrimPrefix(d.Version, "v")})
		}
	}
	return fmt.Errorf("module %s is not built in", module)
}

// printer prints records as JSON lines; safe for concurrent use.
type printer struct {
	mu sync.Mutex
	w  *bufio.Writer
}

// records prints and flushes, so that what is committed afterwards was printed.
func (p *printer) records(rs ...read) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rs {
		if _, err := fmt.Fprintf(p.w, "[%d,%d,%q]\n", r.partition, r.offset, r.hash()); err != nil {
			return err
		}
	}
	return p.w.Flush()
}
