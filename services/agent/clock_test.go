package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A clock that jumps moves the time of day, and nothing that is measured.
func TestJumpingClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	c := newJumpingClock(path)
	defer c.stop()
	before := c.Now()
	if d := time.Since(before).Abs(); d > time.Minute {
		t.Fatalf("it is %v away", d)
	}
	for _, ahead := range []time.Duration{10 * time.Hour, -50 * time.Minute, 0} {
		if err := os.WriteFile(path, []byte(ahead.String()+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(30 * time.Second)
		for time.Duration(c.ahead.Load())*time.Second != ahead {
			if time.Now().After(end) {
				t.Fatal("nobody looks into the file")
			}
			time.Sleep(10 * time.Millisecond)
		}
		now, right := c.Now(), time.Now()
		if d := now.Sub(before); d < 0 || d > time.Minute {
			t.Errorf("%v ahead: %v passed", ahead, d)
		}
		if d := now.Round(0).Sub(right.Round(0)) - ahead; d.Abs() > time.Second {
			t.Errorf("%v ahead: the time of day is %v away from that", ahead, d)
		}
		if d := time.Duration(now.UnixMilli()-right.UnixMilli())*time.Millisecond - ahead; d.Abs() > time.Second {
			t.Errorf("%v ahead: milliseconds are %v away from that", ahead, d)
		}
		if now.Location() != time.Local {
			t.Errorf("location %v", now.Location())
		}
	}
}
