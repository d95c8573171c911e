package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError says what is wrong with a flag and what would be right.
func flagError(cmd *cobra.Command, err error) error {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && unknown.GetSpecifiedShortnames() == "" {
		name := unknown.GetSpecifiedName()
		return fmt.Errorf("%w: unknown flag --%s, the nearest is --%s", errUsage, name, nearest(name, cmd.Flags()))
	}
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return fmt.Errorf("%w: --%s: %w", errUsage, bad.GetFlag().Name, valueError(err))
	}
	return fmt.Errorf("%w: %w", errUsage, err)
}

// valueError says what a flag's value should be, without the flag's name.
func valueError(err error) error {
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	switch kind := bad.GetFlag().Value.Type(); {
	case strings.HasPrefix(kind, "int"):
		if errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("%q is out of range", bad.GetValue())
		}
		return fmt.Errorf("%q is not a whole number", bad.GetValue())
	case kind == "bool":
		return fmt.Errorf("%q: want true or false", bad.GetValue())
	}
	return bad.Unwrap()
}

// nearest returns the flag with the smallest edit distance to key, which is
// none that is allowed there.
func nearest(key string, flags *pflag.FlagSet) string {
	best, dist := "", 1<<30
	flags.VisitAll(func(f *pflag.Flag) {
		if d := distance(key, f.Name); d > 0 && d < dist && f.Name != "help" {
			best, dist = f.Name, d
		}
	})
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
