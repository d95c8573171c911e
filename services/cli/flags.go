package cli

import (
	"errors"
	"fmt"
	"slices"
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
func nearest(key string, flags *pflag.FlagSet) string { return nearestOf(key, flagNames(flags)) }

// flagNames are the names of all flags but --help.
func flagNames(flags *pflag.FlagSet) []string {
	var out []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			out = append(out, f.Name)
		}
	})
	return out
}

// nearestOf returns the name with the smallest edit distance to key, but not
// key itself.
func nearestOf(key string, names []string) string {
	best, dist := "", 1<<30
	for _, name := range names {
		if d := distance(key, name); d > 0 && d < dist {
			best, dist = name, d
		}
	}
	return best
}

// knownVariables refuses a CIRROLOG_* variable that no verb knows: for a typing
// mistake in CIRROLOG_BROKERS would otherwise lead to another cluster.
func knownVariables(environ []string, servers ...*pflag.FlagSet) error {
	var names []string
	for _, s := range servers {
		names = append(names, flagNames(s)...)
	}
	for name := range clientEnv {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		key := envKey(name)
		if !strings.HasPrefix(name, envPrefix) || isTestVariable(key) || slices.Contains(names, key) {
			continue
		}
		return fmt.Errorf("%w: environment: unknown variable %s, the nearest is %s", errUsage, name, envName(nearestOf(key, names)))
	}
	return nil
}

// envKey is the flag that a variable stands for, envName the other way round.
func envKey(name string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "_", "-"))
}

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// isTestVariable: CIRROLOG_TEST_* are of the tests.
func isTestVariable(key string) bool { return strings.HasPrefix(key, "test-") }

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
