package agent

import (
	"strings"
	"testing"
	"time"
)

func TestJudgeClock(t *testing.T) {
	for _, c := range []struct {
		ahead      time.Duration
		warn, fail string
	}{
		{0, "", ""}, {59 * time.Second, "", ""}, {-time.Minute, "", ""},
		{2 * time.Minute, "the clock of this machine is 2m0s behind that of the bucket", ""},
		{-5 * time.Minute, "the clock of this machine is 5m0s ahead of that of the bucket", ""},
		{5*time.Minute + time.Second, "", "the clock of this machine is 5m1s behind that of the bucket"},
		{-time.Hour, "", "the clock of this machine is 1h0m0s ahead of that of the bucket"},
	} {
		warn, err := judgeClock("bucket", c.ahead)
		fail := ""
		if err != nil {
			fail = err.Error()
		}
		if !strings.HasPrefix(warn, c.warn) || (warn == "") != (c.warn == "") || !strings.HasPrefix(fail, c.fail) || (fail == "") != (c.fail == "") {
			t.Errorf("ahead by %v: warning %q, error %q", c.ahead, warn, fail)
		}
	}
}
