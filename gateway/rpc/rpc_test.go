package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/cirrolog/cirrolog/gateway/rpc/proto"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// fake is an agent without anything behind it.
type fake struct {
	state      State
	partitions []Partition
	mu         sync.Mutex
	do         func(ctx context.Context) error // nil: nothing
	coming     lead.Coming
	released   metadata.Released
}

func (f *fake) did(ctx context.Context) error {
	f.mu.Lock()
	do := f.do
	f.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx)
}

// set says what calls do from now on.
func (f *fake) set(do func(context.Context) error) {
	f.mu.Lock()
	f.do = do
	f.mu.Unlock()
}

// State implements Source.
func (f *fake) State(ctx context.Context) (State, error) { return f.state, f.did(ctx) }

// Put implements Source.
func (f *fake) Put(ctx context.Context) error { return f.did(ctx) }

// Partitions implements Source.
func (f *fake) Partitions(ctx context.Context, topic string) ([]Partition, error) {
	if topic == "none" {
		return nil, fmt.Errorf("%w: none", metadata.ErrUnknownTopic)
	}
	return f.partitions, f.did(ctx)
}

// Prepare implements Receiver.
func (f *fake) Prepare(ctx context.Context, c lead.Coming) error {
	f.coming.Partitions = append(f.coming.Partitions, c.Partitions...)
	f.coming.Streams = c.Streams
	return f.did(ctx)
}

// Released implements Receiver.
func (f *fake) Released(ctx context.Context, r metadata.Released) error {
	f.released = r
	return f.did(ctx)
}

// serve runs a server and returns it as others see it.
func serve(t *testing.T, f *fake, o Options) metadata.Agent {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Incarnation, o.Source, o.Receiver = ids.NewIncarnation(), f, f
	s := NewServer(o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Stop(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return metadata.Agent{Node: 1, Incarnation: o.Incarnation, RPC: l.Addr().String()}
}

func peers(t *testing.T, o PeerOptions) *Peers {
	p := NewPeers(o)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func brief(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What an agent tells arrives as it was.
func TestState(t *testing.T) {
	f := &fake{state: State{Node: 3, Incarnation: ids.NewIncarnation(), Epoch: 7, Version: "v1", Cluster: "c", Draining: true, LeaseLive: true, Partitions: 12,
		Agents:   []Agent{{Node: 1, Incarnation: "i", Epoch: 2, Host: "h", Port: 9092, Rack: "a", Reader: true, RPC: "h:1", StartedMs: 5, Lease: LeaseRunOut, UnchangedMs: -1, Leads: 4}},
		Stream:   Stream{Next: 9, Present: 8, Needed: 7, Backlog: 6, Used: 5, Capacity: 4, Error: "e"},
		Sealed:   []ids.Incarnation{"x", "y"},
		Releases: []Release{{"z", 11}}}}
	for i := range 2*pagePartitions + 500 {
		f.partitions = append(f.partitions, Partition{Topic: "t", TopicID: ids.TopicID{1, 2}, Partition: int32(i), Epoch: 3, LogStart: 4, HighWatermark: 1 << 40, TieredEnd: 5, LocalBytes: 6, BucketBytes: 7})
	}
	a, p := serve(t, f, Options{}), peers(t, PeerOptions{})
	got, err := p.State(brief(t), a)
	if err != nil || !reflect.DeepEqual(got, f.state) {
		t.Errorf("got %+v, %v, want %+v", got, err, f.state)
	}
	parts, err := p.Partitions(brief(t), a, "")
	if err != nil || !reflect.DeepEqual(parts, f.partitions) {
		t.Errorf("got %d partitions, %v, want %d", len(parts), err, len(f.partitions))
	}
	if _, err := p.Partitions(brief(t), a, "none"); !errors.Is(err, metadata.ErrUnknownTopic) {
		t.Errorf("partitions of a topic that is not there: %v", err)
	}
}

// Every field of the types has its place in the messages.
func TestConvertKeepsAllFields(t *testing.T) {
	for _, one := range []struct {
		ours    any
		message any
	}{{State{}, pb.StateResponse{}}, {Agent{}, pb.Agent{}}, {Stream{}, pb.Stream{}}, {Partition{}, pb.Partition{}}, {Release{}, pb.Release{}}} {
		n := 0
		m := reflect.TypeOf(one.message)
		for i := range m.NumField() {
			if m.Field(i).IsExported() {
				n++
			}
		}
		if o := reflect.TypeOf(one.ours); o.NumField() != n {
			t.Errorf("%v has %d fields, its message %d", o, o.NumField(), n)
		}
	}
}

// Hints about partitions that move arrive whole, however many they are.
func TestHandover(t *testing.T) {
	f := &fake{}
	a, p := serve(t, f, Options{}), peers(t, PeerOptions{})
	want := lead.Coming{Streams: []ids.Incarnation{ids.NewIncarnation(), ids.NewIncarnation()}}
	for i := range maxPartitions + 10 {
		want.Partitions = append(want.Partitions, ids.TopicPartition{Topic: ids.TopicID{byte(i % 3)}, Partition: int32(i)})
	}
	if err := p.Prepare(brief(t), a, want); err != nil || !reflect.DeepEqual(f.coming, want) {
		t.Errorf("prepare: %v, %d partitions arrive of %d", err, len(f.coming.Partitions), len(want.Partitions))
	}
	r := metadata.Released{Incarnation: ids.NewIncarnation(), Seq: 77}
	if err := p.Released(brief(t), a, r); err != nil || f.released != r {
		t.Errorf("released: %v, %v arrives, want %v", err, f.released, r)
	}
	f.set(func(context.Context) error { return errors.New("the bucket is away") })
	if err := p.Released(brief(t), a, r); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "the bucket is away") {
		t.Errorf("a receiver that can't: %v", err)
	}
}

// Agents that are not there, hang or are others are told apart, soon and in one line.
func TestUnreachable(t *testing.T) {
	p := peers(t, PeerOptions{})
	f := &fake{}
	a := serve(t, f, Options{CallTime: 300 * time.Millisecond})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, one := range []struct {
		name  string
		agent metadata.Agent
		do    func(context.Context) error
		time  time.Duration // that the caller gives it
		want  string
	}{
		{"no address", metadata.Agent{}, nil, time.Second, "--rpc-addr"},
		{"nobody listens", metadata.Agent{RPC: gone.Addr().String()}, nil, time.Second, "refused"},
		{"says nothing", metadata.Agent{RPC: silent.Addr().String()}, nil, 300 * time.Millisecond, "no answer in time"},
		{"handler hangs, the caller gives up", a, hang, 100 * time.Millisecond, "no answer in time"},
		{"handler hangs, the server gives up", a, hang, 5 * time.Second, "no answer in time"},
		{"another start", metadata.Agent{Incarnation: ids.NewIncarnation(), RPC: a.RPC}, nil, time.Second, "--rpc-advertised-addr"},
	} {
		t.Run(one.name, func(t *testing.T) {
			f.set(one.do)
			ctx, cancel := context.WithTimeout(t.Context(), one.time)
			defer cancel()
			began := time.Now()
			_, err := p.State(ctx, one.agent)
			if err == nil || !strings.Contains(err.Error(), one.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one with %q", err, one.want)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A handler that panics is an error for its caller and a line in the log; the agent goes on.
func TestPanic(t *testing.T) {
	log := &lines{}
	f := &fake{do: func(context.Context) error { panic("out of cheese") }}
	a, p := serve(t, f, Options{Logger: log.logger()}), peers(t, PeerOptions{})
	if _, err := p.State(brief(t), a); err == nil || strings.Contains(err.Error(), "cheese") || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("unary: %v", err)
	}
	if _, err := p.Partitions(brief(t), a, ""); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("stream: %v", err)
	}
	if got := log.with("out of cheese"); len(got) != 2 || !strings.Contains(got[0], "rpc_test.go") {
		t.Errorf("log: %q", got)
	}
	f.set(nil)
	if _, err := p.State(brief(t), a); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// raw is a client without the checks of Peers.
func raw(t *testing.T, a metadata.Agent) pb.HandoverClient {
	p := peers(t, PeerOptions{})
	c, err := p.conn(a.RPC)
	if err != nil {
		t.Fatal(err)
	}
	return pb.NewHandoverClient(c)
}

// What is too large, or malformed, is refused.
func TestLimits(t *testing.T) {
	f := &fake{}
	a := serve(t, f, Options{})
	inc := string(a.Incarnation)
	long := make([]int32, maxPartitions+1)
	for i := range long {
		long[i] = int32(i)
	}
	for _, one := range []struct {
		name string
		req  *pb.PrepareRequest
		want codes.Code
	}{
		{"partitions", &pb.PrepareRequest{Incarnation: inc, Topics: []*pb.TopicPartitions{{TopicId: make([]byte, 16), Partitions: long}}}, codes.InvalidArgument},
		{"streams", &pb.PrepareRequest{Incarnation: inc, Streams: make([]string, maxStreams+1)}, codes.InvalidArgument},
		{"name of a stream", &pb.PrepareRequest{Incarnation: inc, Streams: []string{"../x"}}, codes.InvalidArgument},
		{"topic id", &pb.PrepareRequest{Incarnation: inc, Topics: []*pb.TopicPartitions{{TopicId: make([]byte, 15)}}}, codes.InvalidArgument},
		{"message", &pb.PrepareRequest{Incarnation: inc, Streams: []string{strings.Repeat("x", maxMessage)}}, codes.ResourceExhausted},
	} {
		if _, err := raw(t, a).Prepare(brief(t), one.req); status.Code(err) != one.want {
			t.Errorf("%s: %v, want %v", one.name, err, one.want)
		}
	}
	if len(f.coming.Partitions) > 0 {
		t.Error("something of it was handled")
	}
	if _, err := raw(t, a).Released(brief(t), &pb.ReleasedRequest{Incarnation: inc}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no release: %v", err)
	}
}

// With a token only those who have it are answered.
func TestToken(t *testing.T) {
	a := serve(t, &fake{}, Options{Token: "secret"})
	for token, ok := range map[string]bool{"secret": true, "": false, "secre": false, "secret2": false} {
		p := peers(t, PeerOptions{Token: token})
		_, err := p.State(brief(t), a)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--rpc-token-file") {
			t.Errorf("token %q, unary: %v", token, err)
		}
		if _, err := p.Partitions(brief(t), a, ""); (err == nil) != ok {
			t.Errorf("token %q, stream: %v", token, err)
		}
	}
}

// Only agents with a certificate of the cluster's authority are answered; each other one is one line of log.
func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	log := &lines{}
	a := serve(t, &fake{}, Options{TLS: ca.issue(t.TempDir(), soon, ca).load(t, nil), Logger: log.logger()})
	good := peers(t, PeerOptions{TLS: ca.issue(t.TempDir(), soon, ca).load(t, nil)})
	if _, err := good.State(brief(t), a); err != nil {
		t.Fatal(err)
	}
	if got := log.with("refused"); len(got) > 0 {
		t.Errorf("log: %q", got)
	}
	for _, one := range []struct {
		name, want string
		dial       grpc.DialOption
	}{
		{"wrong authority", "is not of an authority", grpc.WithTransportCredentials(other.issue(t.TempDir(), soon, ca).load(t, nil).credentials())},
		{"expired", "has expired", grpc.WithTransportCredentials(ca.issue(t.TempDir(), time.Now().Add(-time.Minute), ca).load(t, nil).credentials())},
		{"no certificate", "has no certificate", grpc.WithTransportCredentials(anonymous(t, ca))},
		{"no TLS", "speaks no TLS", nil},
	} {
		t.Run(one.name, func(t *testing.T) {
			before := len(log.with("refused a connection"))
			if err := callOnce(t, a, one.dial); err == nil {
				t.Error("it is answered")
			}
			var got []string
			for end := time.Now().Add(5 * time.Second); len(got) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
				got = log.with("refused a connection")[before:] // the server may find out after the client has gone
			}
			if len(got) != 1 || !strings.Contains(got[0], one.want) {
				t.Errorf("log: %q, want one line with %q", got, one.want)
			}
		})
	}
	// A client does not trust whoever answers.
	impostor := serve(t, &fake{}, Options{TLS: other.issue(t.TempDir(), soon, ca).load(t, nil)})
	if _, err := good.State(brief(t), impostor); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("an agent with another authority's certificate: %v", err)
	}
	impostor.RPC = strings.Replace(a.RPC, "127.0.0.1", "localhost", 1)
	impostor.Incarnation = a.Incarnation
	if _, err := good.State(brief(t), impostor); err == nil || !strings.Contains(err.Error(), "localhost") {
		t.Errorf("a certificate for another name: %v", err)
	}
}

// anonymous trusts an authority and has no certificate.
func anonymous(t *testing.T, ca *authority) credentials.TransportCredentials {
	c := ca.issue(t.TempDir(), time.Now().Add(time.Hour), ca).load(t, nil).config.Clone()
	c.Certificates = nil
	return credentials.NewTLS(c)
}

// callOnce connects once and makes one call.
func callOnce(t *testing.T, a metadata.Agent, creds grpc.DialOption) error {
	var dials atomic.Int32
	opts := []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		if dials.Add(1) > 1 {
			return nil, errors.New("once only")
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	})}
	if creds == nil {
		creds = grpc.WithTransportCredentials(plain())
	}
	c, err := grpc.NewClient("passthrough:///"+a.RPC, append(opts, creds)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = pb.NewClusterClient(c).State(brief(t), &pb.StateRequest{Incarnation: string(a.Incarnation)})
	return err
}

// Certificates and authorities that are changed on disk count for the next connection, without a restart; what can't be
// used changes nothing.
func TestReload(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	log := &lines{}
	dir := t.TempDir()
	server := first.issue(dir, soon, first).load(t, log.logger())
	a := serve(t, &fake{}, Options{TLS: server})
	try := func(ca *authority) error {
		_, err := peers(t, PeerOptions{TLS: ca.issue(t.TempDir(), soon, ca).load(t, nil)}).State(brief(t), a)
		return err
	}
	past := func() { // as if the time between two looks were over
		server.mu.Lock()
		server.checked = time.Time{}
		server.mu.Unlock()
	}
	if err := try(first); err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{"key.pem", "cert.pem", "ca.pem"} {
		first.issue(dir, soon, first)
		past()
		if err := try(first); err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir+"/"+broken, "nonsense")
		past()
		if err := try(first); err != nil {
			t.Errorf("with a broken %s: %v", broken, err)
		}
	}
	if got := log.with("can't be used"); len(got) != 3 {
		t.Errorf("log: %q", got)
	}
	second.issue(dir, soon, second)
	past()
	if err := try(second); err != nil {
		t.Errorf("after the change: %v", err)
	}
	if err := try(first); err == nil {
		t.Error("the authority of before is still taken")
	}
}
