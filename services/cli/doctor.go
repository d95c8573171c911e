package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/bucketurl"
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
	dir, bucket := a.o.ServeDefaults.DataDir, ""
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check disk, bucket, clock and limits of this machine",
		Long: "Check what a node needs: a writable data directory with fast syncs and direct I/O, a bucket that enforces\n" +
			"conditional writes, a sane clock and enough file descriptors. It writes small files and one small object,\n" +
			"and removes them.",
		Args: args(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&dir, "data-dir", dir, "directory to check; it is made if it is missing")
	cmd.Flags().StringVar(&bucket, "bucket", bucket, "bucket to check: dir://PATH or s3://BUCKET/PREFIX?… (default: a directory in data-dir)")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := checkDisk(dir)
		if bucket == "" {
			bucket = "dir://" + filepath.ToSlash(filepath.Join(dir, "bucket"))
		}
		out = append(out, checkBucket(cmd.Context(), bucket), checkClock(cmd.Context(), "http://"+a.admin+"/livez", time.Now), checkLimits())
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

func checkBucket(ctx context.Context, url string) finding {
	began := time.Now()
	b, err := bucketurl.Open(ctx, url, bucketurl.Options{FS: vfs.OS()})
	if err == nil {
		_, err = objstore.Probe(ctx, b)
		err = errors.Join(err, objstore.Close(b))
	}
	if err != nil {
		return finding{"bucket", statusFail, err.Error()}
	}
	return finding{"bucket", statusOK, fmt.Sprintf("%s: conditional writes, ranges, lists and deletes work (%s)", bucketurl.Redact(url), time.Since(began).Round(time.Millisecond))}
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
