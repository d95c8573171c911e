package cli

import (
	"errors"
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

	"github.com/cirrolog/cirrolog/services/agent"
)

const envPrefix = "CIRROLOG_"

// clientEnv are environment variables of the client verbs, not of the server.
var clientEnv = map[string]bool{"brokers": true, "admin": true}

func (a *app) serveCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a whole node with everything embedded",
		Long: "Run a whole node: Kafka protocol, storage on this disk, an embedded metadata store and, unless told\n" +
			"otherwise, a bucket in a directory. " + flagsHelp,
		Args: args(cobra.NoArgs),
	}
	cmd.Flags().Var((*byteSize)(&cfg.WALSize), "wal-size", "size of a new write-ahead ring")
	a.nodeFlags(cmd, &cfg)
	return cmd
}

// flagsHelp says where else the flags of a server can be given.
const flagsHelp = "Every flag can also be given as CIRROLOG_<FLAG> with _ for -, or\n" +
	"under its name in the YAML file of --config; flags count before environment, environment before file."

func (a *app) agentCmd() *cobra.Command {
	cfg := a.o.ServeDefaults
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run one agent of a cluster, whose disk may be lost",
		Long: "Run one agent of a cluster: what is acknowledged is in the bucket, a metadata store that all agents share\n" +
			"says who leads which partition, and another agent takes over when this one dies. Topics with durability=local\n" +
			"are on this disk instead, and wait for it. " + flagsHelp,
		Args: args(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Metadata, "metadata", "", "redis://[USER:PASSWORD@]HOST:PORT[/DB][?namespace=NAME], rediss://… or dynamodb://TABLE[/PREFIX][?region=…&endpoint=…&create=true], the same for all agents")
	f.StringVar((*string)(&cfg.Role), "role", string(agent.RoleLeader), "leader, or reader: leads no partitions, and serves what is tiered of all")
	f.Var((*duration)(&cfg.Lease), "lease", "how long an agent that is silent counts as alive (0: 3s)")
	f.Var((*duration)(&cfg.WALLinger), "wal-linger", "least time between two puts of acknowledged records (0: 100ms)")
	f.Var((*byteSize)(&cfg.WALSize), "wal-size", "size of a new write-ahead ring, which is made when a topic of class local is led")
	f.Var((*duration)(&cfg.TierMaxDelay), "tier-max-delay", "how long a large open segment waits to be tiered (0: 10m)")
	f.StringVar(&cfg.RPC.Addr, "rpc-addr", "127.0.0.1:9645", "HOST:PORT at which the other agents reach this one (empty: not at all)")
	f.StringVar(&cfg.RPC.Advertised, "rpc-advertised-addr", "", "HOST:PORT that the other agents are told (default: the listener of --rpc-addr; :PORT as above)")
	f.StringVar(&cfg.RPC.Cert, "rpc-tls-cert", "", "PEM file of this agent's certificate for mutual TLS between agents; read again when it changes, as the next two")
	f.StringVar(&cfg.RPC.Key, "rpc-tls-key", "", "PEM file of its key")
	f.StringVar(&cfg.RPC.CA, "rpc-tls-ca", "", "PEM file of the authorities that the agents' certificates come from")
	f.StringVar(&cfg.RPC.TokenFile, "rpc-token-file", "", "file with a secret on one line, the same for all agents")
	a.nodeFlags(cmd, &cfg)
	return cmd
}

// nodeFlags gives a server's command the flags that all have, and what it does.
func (a *app) nodeFlags(cmd *cobra.Command, cfg *agent.Config) {
	var configFile, logLevel, logFormat string
	var topicDefaults map[string]string
	f := cmd.Flags()
	f.StringVar(&configFile, "config", "", "YAML file with values for these flags")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory for log, metadata and cache")
	f.StringVar(&cfg.KafkaAddr, "kafka-addr", cfg.KafkaAddr, "HOST:PORT of the Kafka listener")
	f.StringVar(&cfg.AdminAddr, "admin-addr", cfg.AdminAddr, "HOST:PORT of metrics, health and the admin API")
	f.StringVar(&cfg.HTTPAddr, "http-addr", cfg.HTTPAddr, "HOST:PORT of the HTTP gateway (empty: off)")
	f.StringVar(&cfg.AdvertisedAddr, "advertised-addr", cfg.AdvertisedAddr, "HOST:PORT that clients are told (default: the Kafka listener; :PORT: the one address that this machine has)")
	f.Int32Var(&cfg.NodeID, "node-id", cfg.NodeID, "node id, from 1 (default: the remembered or next free one)")
	f.StringVar(&cfg.Rack, "rack", cfg.Rack, "rack or zone of this node")
	f.StringVar(&cfg.Bucket, "bucket", cfg.Bucket, "dir://PATH or s3://BUCKET/PREFIX?endpoint=…&region=…&driver=s3|minio (default: a directory in data-dir)")
	f.Var((*byteSize)(&cfg.MemoryTail), "memory-tail", "memory for the newest records of all partitions (0: an eighth of the memory, 256MiB at least)")
	f.Var((*byteSize)(&cfg.ReadMemory), "read-memory", "memory for reads from disk")
	f.Var((*byteSize)(&cfg.CacheSize), "cache-size", "disk for blocks of tiered segments")
	f.Var((*byteSize)(&cfg.CacheMemory), "cache-memory", "memory of the tiered reader")
	f.Var((*byteSize)(&cfg.DiskBudget), "disk-budget", "disk for ring and segments; producers wait when it is used up (0: no bound)")
	f.BoolVar(&cfg.AutoCreate, "auto-create", cfg.AutoCreate, "create topics when clients ask for them")
	f.Int32Var(&cfg.NumPartitions, "num-partitions", cfg.NumPartitions, "partitions of topics that do not say")
	f.Int32Var(&cfg.Groups.Partitions, "offsets-topic-partitions", cfg.Groups.Partitions, "partitions of __consumer_offsets when it is created")
	f.Var((*duration)(&cfg.Groups.Config.OffsetRetention), "offsets-retention", "how long offsets of groups without members are kept")
	f.Var((*duration)(&cfg.Groups.Config.InitialRebalanceDelay), "group-initial-rebalance-delay", "how long the first join of a new group waits for more members")
	f.Var((*duration)(&cfg.Groups.Config.MinSessionTimeout), "group-min-session-timeout", "least session timeout of a group member")
	f.Var((*duration)(&cfg.Groups.Config.MaxSessionTimeout), "group-max-session-timeout", "greatest session timeout of a group member")
	f.IntVar(&cfg.Groups.Config.MaxSize, "group-max-size", cfg.Groups.Config.MaxSize, "most members of a group")
	f.StringToStringVar(&topicDefaults, "topic-config", nil, "defaults of topic configs, KEY=VALUE,…")
	f.Var((*byteSizeInt)(&cfg.Limits.MaxFrame), "max-frame", "largest Produce request (0: 100MiB)")
	f.IntVar(&cfg.Limits.MaxConnections, "max-connections", 0, "connections in total (0: 10000)")
	f.IntVar(&cfg.Limits.MaxPerAddress, "max-connections-per-ip", 0, "connections per client address (0: 5000)")
	f.Var((*duration)(&cfg.Limits.Idle), "idle-timeout", "close connections without requests after (0: 10m)")
	f.Var((*duration)(&cfg.RetentionInterval), "retention-interval", "how often retention is checked (0: 30s)")
	f.Var((*duration)(&cfg.SweepInterval), "sweep-interval", "how often the bucket is swept (0: 10m)")
	f.Var((*duration)(&cfg.SweepGrace), "sweep-grace", "how long dead objects stay in the bucket (0: 1h)")
	f.Var((*duration)(&cfg.CompactInterval), "compaction-interval", "how often compacted topics are looked at (0: 15s)")
	f.Var((*duration)(&cfg.ShutdownTimeout), "shutdown-timeout", "bound of a graceful stop")
	f.StringVar((*string)(&cfg.PerPartition), "metrics-per-partition", string(cfg.PerPartition), "metrics per partition: on, off, or auto (up to 1000 partitions)")
	f.Float64Var(&cfg.Prices.Put, "price-put", cfg.Prices.Put, "dollars for 1,000 PUT, COPY, POST and LIST requests, for the metrics of cost")
	f.Float64Var(&cfg.Prices.Get, "price-get", cfg.Prices.Get, "dollars for 1,000 GET and HEAD requests")
	f.Float64Var(&cfg.Prices.Storage, "price-storage", cfg.Prices.Storage, "dollars for a GiB in the bucket for a month")
	f.BoolVar(&cfg.FlightRecorder, "flight-recorder", false, "keep a trace of the last seconds, for /debug/flight on the admin port")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := layer(cmd.Flags(), configFile); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		cfg.TopicDefaults = topicDefaults
		if cmd.Name() == "agent" && cfg.Metadata == "" {
			return fmt.Errorf("%w: --metadata is missing: agents of a cluster share a metadata store; `cirrolog serve` runs a node that is alone", errUsage)
		}
		log, err := newLogger(cmd, logLevel, logFormat)
		if err != nil {
			return err
		}
		err = a.o.Serve(cmd.Context(), *cfg, log)
		if errors.Is(err, agent.ErrConfig) {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		return err
	}
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

// nested separates the levels of a YAML key. No flag's name has it.
const nested = "\x00"

// layer sets the flags that the command line does not give from the
// environment and then from the YAML file. Unknown keys are errors.
func layer(flags *pflag.FlagSet, path string) error {
	set := settings{flags: flags, given: map[string]bool{}}
	flags.Visit(func(f *pflag.Flag) { set.given[f.Name] = true })
	k := koanf.New(nested)
	err := k.Load(env.Provider(nested, env.Opt{Prefix: envPrefix, TransformFunc: func(name, v string) (string, any) {
		key := envKey(name)
		if key == "config" || clientEnv[key] || isTestVariable(key) {
			return "", nil
		}
		return key, v
	}}), nil)
	if err != nil {
		return err
	}
	if err := set.from(k, "environment: unknown variable %s, the nearest is %s", envName, envName); err != nil {
		return err
	}
	if path == "" && flags.Lookup("config") != nil {
		path = envOr(envPrefix+"CONFIG", "")
	}
	if path == "" {
		return nil
	}
	k = koanf.New(nested)
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	inFile := func(key string) string { return path + ": " + key }
	return set.from(k, "%s: unknown key, the nearest is %s", inFile, func(key string) string { return key })
}

// settings sets flags from one source after the other; the first one counts.
type settings struct {
	flags *pflag.FlagSet
	given map[string]bool
}

// from takes the keys of a source. unknown is the message for a key that is no
// flag's name, with the key as at names it and the nearest one as near does.
func (s settings) from(k *koanf.Koanf, unknown string, at, near func(key string) string) error {
	var given []string
	for _, key := range k.Keys() {
		name, sub, deeper := strings.Cut(key, nested)
		f := s.flags.Lookup(name)
		if f == nil || name == "config" || name == "help" || deeper && f.Value.Type() != "stringToString" {
			return fmt.Errorf(unknown, at(strings.ReplaceAll(key, nested, ".")), near(nearest(strings.ReplaceAll(key, nested, "."), s.flags)))
		}
		if s.given[name] {
			continue
		}
		value := k.String(key)
		if deeper {
			value = strings.ReplaceAll(sub, nested, ".") + "=" + value
		}
		if err := s.flags.Set(name, value); err != nil {
			return fmt.Errorf("%s = %q: %w", at(name), value, valueError(err))
		}
		given = append(given, name)
	}
	for _, name := range given {
		s.given[name] = true
	}
	return nil
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
