package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/timeout"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "github.com/cirrolog/cirrolog/gateway/rpc/proto"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/lead"
)

// PeerOptions of Peers; all may be left out.
type PeerOptions struct {
	TLS     *TLS
	Token   string
	Metrics *Metrics
	Logger  *slog.Logger
}

// Peers calls other agents. It keeps a connection to each that it has called, for as
// long as there are calls. It is safe for concurrent use.
type Peers struct {
	o     PeerOptions
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by address
	shut  bool
}

var _ lead.Peers = (*Peers)(nil)

// Bounds of connections to other agents.
const (
	connectTime = 3 * time.Second
	redialMost  = 2 * time.Second
	// mostConns is how many connections are kept; beyond it all are made anew.
	mostConns = 1000
)

// NewPeers returns Peers without connections.
func NewPeers(o PeerOptions) *Peers {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics("", nil)
	}
	return &Peers{o: o, conns: map[string]*grpc.ClientConn{}}
}

// conn returns the connection to an address.
func (p *Peers) conn(addr string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return nil, errors.New("shutting down")
	}
	if c := p.conns[addr]; c != nil {
		return c, nil
	}
	if len(p.conns) >= mostConns {
		for _, c := range p.conns {
			_ = c.Close() // calls at work fail, and others are made anew
		}
		clear(p.conns)
	}
	creds := insecure.NewCredentials()
	if p.o.TLS != nil {
		creds = p.o.TLS.credentials()
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTime, Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMost}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithChainUnaryInterceptor(p.o.Metrics.client.UnaryClientInterceptor(), logging.UnaryClientInterceptor(logTo(p.o.Logger), clientLog...), timeout.UnaryClientInterceptor(callTime)),
		grpc.WithChainStreamInterceptor(p.o.Metrics.client.StreamClientInterceptor(), logging.StreamClientInterceptor(logTo(p.o.Logger), clientLog...))}
	if p.o.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(p.o.Token)))
	}
	c, err := grpc.NewClient("dns:///"+addr, opts...)
	if err != nil {
		return nil, err
	}
	p.conns[addr] = c
	return c, nil
}

// clientLog: the caller says what a failure means.
var clientLog = []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(func(codes.Code) logging.Level { return logging.LevelDebug })}

// bearer is a token that goes with every call.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: networks may be private without TLS.
func (bearer) RequireTransportSecurity() bool { return false }

var _ credentials.PerRPCCredentials = bearer("")

// Close ends all connections.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = true
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	clear(p.conns)
	return errors.Join(errs...)
}

// to returns the connection to an agent.
func (p *Peers) to(a metadata.Agent) (*grpc.ClientConn, error) {
	if a.RPC == "" {
		return nil, fmt.Errorf("%w: it has no --rpc-addr", ErrUnreachable)
	}
	c, err := p.conn(a.RPC)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, a.RPC, err)
	}
	return c, nil
}

// called says in one line why a call failed; nil if it did not.
func called(a metadata.Agent, err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	switch st.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s: no answer in time", ErrUnreachable, a.RPC)
	case codes.Unavailable:
		return fmt.Errorf("%w: %s: %s", ErrUnreachable, a.RPC, st.Message())
	case codes.NotFound:
		return fmt.Errorf("%w: %s", metadata.ErrUnknownTopic, st.Message())
	}
	return fmt.Errorf("agent at %s: %s", a.RPC, st.Message())
}

// State asks an agent what it is and sees.
func (p *Peers) State(ctx context.Context, a metadata.Agent) (State, error) {
	c, err := p.to(a)
	if err != nil {
		return State{}, err
	}
	m, err := pb.NewClusterClient(c).State(ctx, &pb.StateRequest{Incarnation: string(a.Incarnation)})
	if err != nil {
		return State{}, called(a, err)
	}
	return stateOf(m), nil
}

// Partitions asks an agent what it leads of a topic, "" for all.
func (p *Peers) Partitions(ctx context.Context, a metadata.Agent, topic string) (out []Partition, err error) {
	c, err := p.to(a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	pages, err := pb.NewClusterClient(c).Partitions(ctx, &pb.PartitionsRequest{Incarnation: string(a.Incarnation), Topic: topic})
	for err == nil {
		var page *pb.PartitionsResponse
		if page, err = pages.Recv(); err != nil {
			break
		}
		for _, m := range page.GetPartitions() {
			one, err := partitionOf(m)
			if err != nil {
				return nil, fmt.Errorf("agent at %s: %w", a.RPC, err)
			}
			out = append(out, one)
		}
	}
	if errors.Is(err, io.EOF) {
		return out, nil
	}
	return nil, called(a, err)
}

// Put has an agent put an object into its stream, and returns when that is durable.
func (p *Peers) Put(ctx context.Context, a metadata.Agent) error {
	c, err := p.to(a)
	if err != nil {
		return err
	}
	_, err = pb.NewClusterClient(c).Put(ctx, &pb.PutRequest{Incarnation: string(a.Incarnation)})
	return called(a, err)
}

// Prepare implements lead.Peers.
func (p *Peers) Prepare(ctx context.Context, to metadata.Agent, coming lead.Coming) error {
	c, err := p.to(to)
	if err != nil {
		return err
	}
	for _, m := range comingMessages(to.Incarnation, coming) {
		if _, err := pb.NewHandoverClient(c).Prepare(ctx, m); err != nil {
			return called(to, err)
		}
	}
	return nil
}

// Released implements lead.Peers.
func (p *Peers) Released(ctx context.Context, to metadata.Agent, r metadata.Released) error {
	c, err := p.to(to)
	if err != nil {
		return err
	}
	_, err = pb.NewHandoverClient(c).Released(ctx, &pb.ReleasedRequest{Incarnation: string(to.Incarnation), Release: &pb.Release{Incarnation: string(r.Incarnation), Object: r.Seq}})
	return called(to, err)
}
