package main

// first: the time from the start of a server to its first acknowledged record,
// and what it takes when it has nothing to do.
import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func init() { cmds["first"] = firstMain }

func firstMain(a []string) {
	fs := flag.NewFlagSet("first", flag.ExitOnError)
	addr := fs.String("addr", "127.0.0.1:23901", "")
	idle := fs.Duration("idle", 20*time.Second, "how long to watch it idle, after 5 s of rest")
	parts := fs.Int("parts", 0, "make a topic of so many partitions, with a record in each, before the measured start")
	fs.Parse(a)
	const topic = "first"
	if *parts > 0 {
		cmd := run(fs.Args())
		until(*addr, topic, 1)
		fill(*addr, *parts)
		end(cmd)
	} else { // formatted, and the topic is there
		cmd := run(fs.Args())
		until(*addr, topic, 1)
		end(cmd)
	}
	quiet()
	t0 := time.Now()
	cmd := run(fs.Args())
	took := until(*addr, topic, 1).Sub(t0)
	time.Sleep(5 * time.Second)
	pid := cmd.Process.Pid
	c := pidCPU(pid)
	time.Sleep(*idle)
	used := pidCPU(pid).sub(c).tot()
	fmt.Printf("START first ack %.1f ms | idle rss %.1f MB cpu %.2f %% of a core threads %d fds %d\n", float64(took.Microseconds())/1000, pidRSS(pid),
		100*used/idle.Seconds(), count(pid, "task"), count(pid, "fd"))
	end(cmd)
}

func run(args []string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	must(cmd.Start())
	return cmd
}

func end(cmd *exec.Cmd) {
	must(cmd.Process.Signal(syscall.SIGTERM))
	cmd.Wait()
}

func childless(pid int) int { return pid } // the commands exec

func count(pid int, dir string) int {
	l, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/" + dir + "/*")
	return len(l)
}

// until tries to produce a record until it is acknowledged.
func until(addr, topic string, records int) time.Time {
	k := &kraw{addr: addr, topic: topic, acks: -1, batch: 128, rec: 128, parts: 1}
	bt, _, _ := stdBatch(records, 128)
	frame0 := k.produceFrame(0, bt)
	limit := time.Now().Add(3 * time.Minute)
	var problem error
	for time.Now().Before(limit) {
		if problem = tryProduce(addr, topic, frame0); problem == nil {
			return time.Now()
		}
		time.Sleep(time.Millisecond)
	}
	must(fmt.Errorf("no acknowledged record in 3 min: %w", problem))
	return time.Time{}
}

// tryProduce asks for the topic, which makes it, and sends the frame.
func tryProduce(addr, topic string, produce []byte) error {
	cn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer cn.Close()
	cn.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(cn)
	for {
		if _, err := cn.Write(produce); err != nil {
			return err
		}
		b, err := readResp(br, nil)
		if err != nil {
			return err
		}
		code := int16(binary.BigEndian.Uint16(b[4+4+2+len(topic)+4+4:]))
		if code == 0 {
			return nil
		}
		if code != kerr.UnknownTopicOrPartition.Code {
			return kerr.ErrorForCode(code)
		}
		md := kmsg.NewPtrMetadataRequest()
		md.Version, md.AllowAutoTopicCreation = 4, true
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(topic)
		md.Topics = append(md.Topics, t)
		if _, err := cn.Write(frame(md, 4)); err != nil {
			return err
		}
		if _, err := readResp(br, nil); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// fill makes a topic and puts a record into each of its partitions.
func fill(addr string, parts int) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic("many"))
	must(err)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	r, err := kadm.NewClient(cl).CreateTopic(ctx, int32(parts), 1, nil, "many")
	must(err)
	must(r.Err)
	recs := make([]*kgo.Record, parts)
	for i := range recs {
		recs[i] = &kgo.Record{Partition: int32(i), Value: []byte(strings.Repeat("x", 100))}
	}
	must(cl.ProduceSync(ctx, recs...).FirstErr())
}
