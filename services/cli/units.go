package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// byteSize is a flag of bytes with a unit: 512MiB, 1GB, 4096.
type byteSize int64

func (b *byteSize) String() string { return humanize.IBytes(uint64(max(*b, 0))) }
func (b *byteSize) Type() string   { return "bytes" }
func (b *byteSize) Set(s string) error {
	v, err := parseBytes(s)
	*b = byteSize(v)
	return err
}

type byteSizeInt int

func (b *byteSizeInt) String() string { return humanize.IBytes(uint64(max(*b, 0))) }
func (b *byteSizeInt) Type() string   { return "bytes" }
func (b *byteSizeInt) Set(s string) error {
	v, err := parseBytes(s)
	*b = byteSizeInt(v)
	return err
}

func parseBytes(s string) (int64, error) {
	v, err := humanize.ParseBytes(s)
	if err != nil || v > math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: want a number with a unit, as 512MiB or 1GB", s)
	}
	return int64(v), nil
}

// parseDuration is time.ParseDuration with days: 7d, 1d12h.
func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration: want a number with a unit, as 500ms, 1h30m or 7d", s)
	var days time.Duration
	if before, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseInt(before, 10, 32)
		if err != nil || n < 0 || n > 100_000 {
			return 0, bad
		}
		days, s = time.Duration(n)*24*time.Hour, after
		if s == "" {
			return days, nil
		}
	}
	if s == "0" {
		return days, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return days + d, nil
}

func envList(name, def string) []string { return strings.Split(envOr(name, def), ",") }
