package cli

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const envPrefix = "CIRROLOG_"

// clientEnv are environment variables of the client verbs, not of the server.
var clientEnv = map[string]bool{"brokers": true, "admin": true}

func (a *app) serveCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	var configFile, logLevel, logFormat string
	var topicDefaults map[string]string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a whole node with everything embedded",
		Long: "Run a whole node: Kafka protocol, storage on this disk, an embedded metadata store and, unless told\n" +
			"otherwise, a bucket in a directory. Every flag can also be given as CIRROLOG_<FLAG> with _ for -, or\n" +
			"under its name in the YAML file of --config; flags count before environment, environment before file.",
		Args: noArgs,
	}
	f := cmd.Flags()
	f.StringVar(&configFile, "config", "", "YAML file with values for these flags")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory for log, metadata and cache")
	f.StringVar(&cfg.KafkaAddr, "kafka-addr", cfg.KafkaAddr, "HOST:PORT of the Kafka listener")
	f.StringVar(&cfg.AdminAddr, "admin-addr", cfg.AdminAddr, "HOST:PORT of metrics, health and the admin API")
	f.StringVar(&cfg.AdvertisedAddr, "advertised-addr", cfg.AdvertisedAddr, "HOST:PORT that clients are told (default: the Kafka listener)")
	f.Int32Var(&cfg.NodeID, "node-id", cfg.NodeID, "node id, from 1 (default: the remembered or next free one)")
	f.StringVar(&cfg.Rack, "rack", cfg.Rack, "rack or zone of this node")
	f.StringVar(&cfg.Bucket, "bucket", cfg.Bucket, "dir://PATH or s3://BUCKET/PREFIX?endpoint=…&region=…&driver=s3|minio (default: a directory in data-dir)")
	f.Var((*byteSize)(&cfg.WALSize), "wal-size", "size of a new write-ahead ring")
	f.Var((*byteSize)(&cfg.MemoryTail), "memory-tail", "memory for the tails of all partitions")
	f.Var((*byteSize)(&cfg.ReadMemory), "read-memory", "memory for reads from disk")
	f.Var((*byteSize)(&cfg.CacheSize), "cache-size", "disk for blocks of tiered segments")
	f.Var((*byteSize)(&cfg.CacheMemory), "cache-memory", "memory of the tiered reader")
	f.Var((*byteSize)(&cfg.DiskBudget), "disk-budget", "disk for ring and segments; producers wait when it is used up (0: no bound)")
	f.BoolVar(&cfg.AutoCreate, "auto-create", cfg.AutoCreate, "create topics when clients ask for them")
	f.Int32Var(&cfg.NumPartitions, "num-partitions", cfg.NumPartitions, "partitions of topics that do not say")
	f.StringToStringVar(&topicDefaults, "topic-config", nil, "defaults of topic configs, KEY=VALUE,…")
	f.Var((*byteSizeInt)(&cfg.Limits.MaxFrame), "max-frame", "largest Produce request (0: 100MiB)")
	f.IntVar(&cfg.Limits.MaxConnections, "max-connections", 0, "connections in total (0: 10000)")
	f.IntVar(&cfg.Limits.MaxPerAddress, "max-connections-per-ip", 0, "connections per client address (0: 5000)")
	f.Var((*duration)(&cfg.Limits.Idle), "idle-timeout", "close connections without requests after (0: 10m)")
	f.Var((*duration)(&cfg.RetentionInterval), "retention-interval", "how often retention is checked (0: 30s)")
	f.Var((*duration)(&cfg.SweepInterval), "sweep-interval", "how often the bucket is swept (0: 10m)")
	f.Var((*duration)(&cfg.SweepGrace), "sweep-grace", "how long dead objects stay in the bucket (0: 1h)")
	f.Var((*duration)(&cfg.ShutdownTimeout), "shutdown-timeout", "bound of a graceful stop")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := layer(cmd.Flags(), configFile); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		cfg.TopicDefaults = topicDefaults
		log, err := newLogger(cmd, logLevel, logFormat)
		if err != nil {
			return err
		}
		return a.o.Serve(cmd.Context(), cfg, log)
	}
	return cmd
}

func newLogger(cmd *cobra.Command, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: --log-level %q: want debug, info, warn or error", errUsage, level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), o)), nil
	}
	return nil, fmt.Errorf("%w: --log-format %q: want text or json", errUsage, format)
}

// layer sets the flags that the command line does not give from the
// environment and then from the YAML file. Unknown keys are errors.
func layer(flags *pflag.FlagSet, path string) error {
	k := koanf.New("\x00") // no nesting: keys are flag names
	known := func(key string) bool { f := flags.Lookup(key); return f != nil && key != "config" && key != "help" }
	if path == "" {
		if f := flags.Lookup("config"); f != nil {
			path = envOr(envPrefix+"CONFIG", "")
		}
	}
	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		for _, key := range k.Keys() {
			if !known(key) {
				return fmt.Errorf("%s: unknown key %q, the nearest is %q", path, key, nearest(key, flags))
			}
		}
	}
	var unknown error
	err := k.Load(env.Provider("\x00", env.Opt{Prefix: envPrefix, TransformFunc: func(name, v string) (string, any) {
		key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, envPrefix)), "_", "-")
		if key == "config" || clientEnv[key] || strings.HasPrefix(key, "test-") {
			return "", nil
		}
		if !known(key) && unknown == nil {
			unknown = fmt.Errorf("environment: unknown variable %s, the nearest is %s%s", name, envPrefix,
				strings.ToUpper(strings.ReplaceAll(nearest(key, flags), "-", "_")))
		}
		return key, v
	}}), nil)
	if err == nil {
		err = unknown
	}
	if err != nil {
		return err
	}
	for _, key := range k.Keys() {
		if f := flags.Lookup(key); f != nil && !f.Changed && known(key) {
			if err := flags.Set(key, k.String(key)); err != nil {
				return fmt.Errorf("%s = %q: %w", key, k.String(key), err)
			}
		}
	}
	return nil
}

// nearest returns the flag with the smallest edit distance to key.
func nearest(key string, flags *pflag.FlagSet) string {
	best, dist := "", 1<<30
	flags.VisitAll(func(f *pflag.Flag) {
		if d := distance(key, f.Name); d < dist && f.Name != "help" {
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

// duration is a time.Duration flag that also knows days.
type duration time.Duration

func (d *duration) String() string { return time.Duration(*d).String() }
func (d *duration) Type() string   { return "duration" }
func (d *duration) Set(s string) error {
	v, err := parseDuration(s)
	*d = duration(v)
	return err
}
