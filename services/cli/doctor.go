package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// finding is what doctor says about one thing.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn, fail
	Detail string `json:"detail"`
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"

	syncSamples  = 200
	slowSync     = 10 * time.Millisecond
	wantFiles    = 65_536
	leastFiles   = 4_096
	clockMin     = 1_735_689_600 // 2025-01-01, s since 1970
	clockSkewMax = 5 * time.Minute
	lowDisk      = 2 << 30
)

func (a *app) doctorCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check disk, bucket, metadata store, clocks and limits of this machine",
		Long: "Check what a node needs: a writable data directory with fast syncs and direct I/O, a bucket that enforces\n" +
			"conditional writes and lists as S3 does, a sane clock and enough file descriptors. With --metadata it checks all that\n" +
			"`cirrolog agent` would refuse with these flags. It writes small files, objects and rows, and removes them; a\n" +
			"metadata store that is opened for the first time keeps its namespace, or its table with create=true.",
		Args: args(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory to check; it is made if it is missing")
	f.StringVar(&cfg.Bucket, "bucket", cfg.Bucket, "bucket to check: dir://PATH or s3://BUCKET/PREFIX?… (default: a directory in data-dir)")
	f.StringVar(&cfg.Metadata, "metadata", cfg.Metadata, "metadata store of a cluster to check: redis://…, rediss://… or dynamodb://…")
	f.StringVar(&cfg.AdvertisedAddr, "advertised-addr", cfg.AdvertisedAddr, "HOST:PORT that no other agent of the cluster may have")
	f.Int32Var(&cfg.NodeID, "node-id", cfg.NodeID, "node id that the agent is to have")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Metadata != "" && cfg.Bucket == "" {
			return fmt.Errorf("%w: --bucket is missing: agents of a cluster share one", errUsage)
		}
		out := append(checkDisk(cfg.DataDir), checkAgent(cmd.Context(), cfg)...)
		out = append(out, checkClock(cmd.Context(), "http://"+a.admin+"/livez", time.Now), checkLimits())
		t := table{header: []string{"CHECK", "STATUS", "DETAIL"}}
		failed := 0
		for _, f := range out {
			t.add(f.Check, f.Status, f.Detail)
			if f.Status == statusFail {
				failed++
			}
		}
		err := a.render(cmd.OutOrStdout(), out, &t)
		if failed > 0 {
			err = errors.Join(err, fmt.Errorf("%d checks failed", failed))
		}
		return err
	}
	return cmd
}

// checkAgent asks what an agent of this configuration would refuse.
func checkAgent(ctx context.Context, cfg agent.Config) (out []finding) {
	var said warnings
	for _, c := range agent.Inspect(ctx, cfg, slog.New(&said)) {
		f := finding{c.Name, statusOK, c.OK}
		switch {
		case c.Err != nil:
			f.Status, f.Detail = statusFail, strings.ReplaceAll(c.Err.Error(), "\n", "; ")
		case c.Warn != "":
			f.Status, f.Detail = statusWarn, c.Warn
		}
		out = append(out, f)
	}
	said.mu.Lock()
	defer said.mu.Unlock()
	for _, w := range said.texts {
		out = append(out, finding{"metadata", statusWarn, w})
	}
	return out
}

// warnings keeps the messages of a log that are warnings.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

// Enabled implements slog.Handler.
func (w *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle implements slog.Handler.
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, r.Message)
	return nil
}

// WithAttrs implements slog.Handler.
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup implements slog.Handler.
func (w *warnings) WithGroup(string) slog.Handler { return w }

// checkDisk writes and syncs a file in dir.
func checkDisk(dir string) []finding {
	fail := func(what string, err error) []finding { return []finding{{what, statusFail, err.Error()}} }
	fsys := vfs.OS()
	if err := fsys.MkdirAll(dir); err != nil {
		return fail("data dir", err)
	}
	name := filepath.Join(dir, fmt.Sprintf(".doctor-%d", os.Getpid()))
	f, err := fsys.Open(name, vfs.Create|vfs.Excl|vfs.Direct|vfs.Dsync)
	if err != nil {
		return fail("data dir", err)
	}
	defer func() { _ = fsys.Remove(name) }()
	defer func() { _ = f.Close() }()
	out := []finding{{"data dir", statusOK, dir + " is writable"}}
	direct := finding{"direct I/O", statusOK, "the file system has it"}
	if d, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0); err != nil { // vfs falls back in silence
		direct = finding{"direct I/O", statusWarn, "the file system has none; writes go through the page cache"}
	} else {
		_ = d.Close()
	}
	out = append(out, direct)
	times := make([]time.Duration, 0, syncSamples)
	buf := vfs.AlignedBytes(vfs.BlockSize)
	for i := range int64(syncSamples) {
		began := time.Now()
		if _, err := f.WriteAt(buf, i*vfs.BlockSize); err != nil {
			return append(out, fail("sync", err)...)
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	p50, p99 := times[len(times)/2], times[len(times)*99/100]
	sync := finding{"sync", statusOK, fmt.Sprintf("4 KiB written and synced in p50 %s, p99 %s", p50.Round(time.Microsecond), p99.Round(time.Microsecond))}
	if p99 > slowSync {
		sync.Status = statusWarn
		sync.Detail += ": slow; every produce request with acks=all waits for one"
	}
	out = append(out, sync)
	free, total, err := fsys.Usage(dir)
	if err != nil {
		return append(out, fail("disk space", err)...)
	}
	space := finding{"disk space", statusOK, fmt.Sprintf("%s of %s free", ibytes(free), ibytes(total))}
	if free < lowDisk {
		space.Status = statusWarn
	}
	return append(out, space)
}

// checkClock compares the clock with an agent's, if one answers.
func checkClock(ctx context.Context, url string, now func() time.Time) finding {
	if now().Unix() < clockMin {
		return finding{"clock", statusFail, "it is " + now().UTC().Format(time.RFC3339) + " here: set the clock"}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	alone := finding{"clock", statusOK, now().UTC().Format(time.RFC3339) + ", no agent to compare with"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return alone
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return alone
	}
	_ = resp.Body.Close()
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return alone
	}
	if d := now().Sub(theirs).Abs(); d > clockSkewMax {
		return finding{"clock", statusFail, fmt.Sprintf("%s away from the agent's", d.Round(time.Second))}
	}
	return finding{"clock", statusOK, now().UTC().Format(time.RFC3339) + ", as the agent's"}
}

func checkLimits() finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return finding{"open files", statusFail, err.Error()}
	}
	f := finding{"open files", statusOK, fmt.Sprintf("limit %d (ulimit -n)", l.Cur)}
	switch {
	case l.Cur < leastFiles:
		f.Status = statusFail
		f.Detail += fmt.Sprintf(": want at least %d", leastFiles)
	case l.Cur < wantFiles:
		f.Status = statusWarn
		f.Detail += fmt.Sprintf(": %d is better for many connections", wantFiles)
	}
	return f
}
