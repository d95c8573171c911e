package rpc

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/auth"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "github.com/cirrolog/cirrolog/gateway/rpc/proto"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Options of a Server. Incarnation and Source are required.
type Options struct {
	Incarnation ids.Incarnation
	Source      Source
	Receiver    Receiver // nil: partitions are not taken over
	TLS         *TLS     // nil: none
	Token       string   // that callers must have; "": none
	Metrics     *Metrics
	Logger      *slog.Logger
	CallTime    time.Duration // bounds every call; 0: 30 s
}

// Server answers other agents.
type Server struct {
	pb.UnimplementedClusterServer
	pb.UnimplementedHandoverServer
	o    Options
	grpc *grpc.Server
}

// Keepalive: both sides ask after this time without traffic, and give up after the next.
const (
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	connIdle         = 10 * time.Minute
	handshakeTime    = 5 * time.Second
)

// NewServer returns a server; call Serve with a listener.
func NewServer(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics("", nil)
	}
	if o.CallTime <= 0 {
		o.CallTime = callTime
	}
	s := &Server{o: o}
	creds := insecure.NewCredentials()
	if o.TLS != nil {
		creds = loggedHandshakes{o.TLS.credentials(), o.Logger}
	}
	recovered := recovery.WithRecoveryHandlerContext(s.panicked)
	logOptions := []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(levelOf)}
	s.grpc = grpc.NewServer(grpc.Creds(creds), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxCalls),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: connIdle, Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 3, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(o.Metrics.server.UnaryServerInterceptor(), logging.UnaryServerInterceptor(logTo(o.Logger), logOptions...),
			recovery.UnaryServerInterceptor(recovered), auth.UnaryServerInterceptor(s.authorize), s.bounded),
		grpc.ChainStreamInterceptor(o.Metrics.server.StreamServerInterceptor(), logging.StreamServerInterceptor(logTo(o.Logger), logOptions...),
			recovery.StreamServerInterceptor(recovered), auth.StreamServerInterceptor(s.authorize)))
	pb.RegisterClusterServer(s.grpc, s)
	pb.RegisterHandoverServer(s.grpc, s)
	o.Metrics.server.InitializeMetrics(s.grpc)
	return s
}

// Serve answers on a listener until Stop.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop waits for the calls at work until ctx ends, and closes all connections.
func (s *Server) Stop(ctx context.Context) {
	done := context.AfterFunc(ctx, s.grpc.Stop)
	defer done()
	s.grpc.GracefulStop()
}

// panicked answers for a handler that has panicked.
func (s *Server) panicked(_ context.Context, p any) error {
	s.o.Logger.Error("a call of another agent panicked", "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "the call panicked; the log of the agent has the reason")
}

func logTo(l *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		l.Log(ctx, slog.Level(level), msg, fields...)
	})
}

// levelOf is at what level calls are logged: those that succeed, or whose caller has gone, only for debugging.
func levelOf(c codes.Code) logging.Level {
	switch c {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded:
		return logging.LevelDebug
	}
	return logging.LevelWarn
}

// authorize compares the token of the call, if this agent wants one. With TLS the certificate was
// verified before.
func (s *Server) authorize(ctx context.Context) (context.Context, error) {
	if s.o.Token == "" {
		return ctx, nil
	}
	token, err := auth.AuthFromMD(ctx, "bearer")
	if err != nil || subtle.ConstantTimeCompare([]byte(token), []byte(s.o.Token)) != 1 {
		return nil, status.Error(codes.Unauthenticated, "the token is missing or wrong: all agents of a cluster have the same --rpc-token-file")
	}
	return ctx, nil
}

// bounded bounds a call, and refuses one that is meant for another agent.
func (s *Server) bounded(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if m, ok := req.(interface{ GetIncarnation() string }); ok {
		if err := s.meant(m.GetIncarnation()); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.CallTime)
	defer cancel()
	return handle(ctx, req)
}

func (s *Server) meant(inc string) error {
	if inc == string(s.o.Incarnation) {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "this is agent start %s, not %s: it was started again, or the other one's --rpc-advertised-addr leads here", s.o.Incarnation, inc)
}

// State implements the service.
func (s *Server) State(ctx context.Context, _ *pb.StateRequest) (*pb.StateResponse, error) {
	st, err := s.o.Source.State(ctx)
	if err != nil {
		return nil, failed(err)
	}
	return stateMessage(&st), nil
}

// Partitions implements the service.
func (s *Server) Partitions(req *pb.PartitionsRequest, out grpc.ServerStreamingServer[pb.PartitionsResponse]) error {
	if err := s.meant(req.GetIncarnation()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(out.Context(), s.o.CallTime)
	defer cancel()
	ps, err := s.o.Source.Partitions(ctx, req.GetTopic())
	if err != nil {
		return failed(err)
	}
	for len(ps) > 0 {
		n := min(len(ps), pagePartitions)
		page := &pb.PartitionsResponse{}
		for i := range ps[:n] {
			page.Partitions = append(page.Partitions, partitionMessage(&ps[i]))
		}
		if err := out.Send(page); err != nil {
			return err
		}
		ps = ps[n:]
	}
	return nil
}

// Put implements the service.
func (s *Server) Put(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{}, failed(s.o.Source.Put(ctx))
}

// Prepare implements the service.
func (s *Server) Prepare(ctx context.Context, req *pb.PrepareRequest) (*pb.PrepareResponse, error) {
	c, err := comingOf(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if s.o.Receiver == nil {
		return nil, errNoReceiver
	}
	return &pb.PrepareResponse{}, failed(s.o.Receiver.Prepare(ctx, c))
}

// Released implements the service.
func (s *Server) Released(ctx context.Context, req *pb.ReleasedRequest) (*pb.ReleasedResponse, error) {
	inc, err := ids.ParseIncarnation(req.GetRelease().GetIncarnation())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if s.o.Receiver == nil {
		return nil, errNoReceiver
	}
	return &pb.ReleasedResponse{}, failed(s.o.Receiver.Released(ctx, metadata.Released{Incarnation: inc, Seq: req.GetRelease().GetObject()}))
}

var errNoReceiver = status.Error(codes.Unimplemented, "this agent takes no partitions over")

// failed is the status of an error; nil of none.
func failed(err error) error {
	code := codes.Unavailable
	switch {
	case err == nil:
		return nil
	case errors.Is(err, metadata.ErrUnknownTopic):
		code = codes.NotFound
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}
