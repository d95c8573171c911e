package agent

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"
)

// An agent that is told to stop while it starts, and waits for its metadata store, has not failed.
func TestStopWhileStarting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig(t)
	cfg.Metadata, cfg.Bucket, cfg.RPC.Addr = "redis://"+l.Addr().String(), "dir://"+t.TempDir(), "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
		}
		time.Sleep(50 * time.Millisecond)
		cancel()
		<-t.Context().Done()
	}()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it failed: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}
