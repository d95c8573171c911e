package agent

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/cirrolog/cirrolog/gateway/kafka"
	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
)

// Config of an agent. Default gives the values of `cirrolog serve`.
type Config struct {
	DataDir        string
	KafkaAddr      string // HOST:PORT to listen on
	AdminAddr      string
	HTTPAddr       string // of the HTTP gateway; "": off
	AdvertisedAddr string // HOST:PORT that clients are told; "": the listener's; without HOST: this machine's
	NodeID         int32  // 0: the remembered or next free one
	Rack           string
	Bucket         string // bucket URL; "": a directory in DataDir

	// Metadata is the URL of a metadata store that several agents share; "": the node is alone,
	// with a store of its own in DataDir. With it, the agents' write-ahead streams are in the bucket.
	Metadata     string
	RPC          RPCConfig
	Role         Role          // in a cluster; "": leader
	Lease        time.Duration // how long an agent that is silent counts as alive; 0: 3 s
	WALLinger    time.Duration // least time between two puts of the stream; 0: 100 ms
	TierMaxDelay time.Duration // how long a large open segment waits to be tiered; 0: 10 min

	WALSize     int64 // bytes of a new ring; an agent of a cluster has one for topics of class local
	MemoryTail  int64 // bytes of the memory tail of all partitions; 0: an eighth of the memory
	ReadMemory  int64 // bytes of buffers of reads from SSD
	CacheSize   int64 // bytes of the block cache on SSD
	CacheMemory int64 // bytes of memory of the tiered reader
	DiskBudget  int64 // bytes of ring, segments and spill files; 0: no bound

	AutoCreate    bool
	NumPartitions int32
	Groups        broker.GroupOptions
	TopicDefaults map[string]string // topic configs that differ from the built-in defaults

	PerPartition    PerPartition  // when there are metrics per partition
	MeasureInterval time.Duration // of topics, partitions and groups for the metrics; at least
	Prices          Prices        // of the object store
	FlightRecorder  bool          // record the last seconds of execution for /debug/flight

	Limits            kafka.Limits
	RetentionInterval time.Duration
	SweepInterval     time.Duration
	SweepGrace        time.Duration
	CompactInterval   time.Duration
	ShutdownTimeout   time.Duration

	Now func() time.Time // the clock by which records, segments and offsets age; nil: time.Now. Leases don't go by it
}

// Role is what an agent of a cluster does.
type Role string

// A leader leads partitions, and serves what is tiered of the others'. A reader
// only does the latter.
const (
	RoleLeader Role = "leader"
	RoleReader Role = "reader"
)

// Default returns the configuration of a single node with everything embedded.
func Default() Config {
	return Config{
		DataDir: "data", KafkaAddr: "127.0.0.1:9092", AdminAddr: "127.0.0.1:9644", HTTPAddr: "127.0.0.1:8082",
		WALSize: 512 << 20, ReadMemory: 128 << 20, CacheSize: 10 << 30, CacheMemory: 256 << 20,
		PerPartition: PerPartitionAuto, MeasureInterval: 5 * time.Second, Prices: Prices{Put: 0.005, Get: 0.0004, Storage: 0.023},
		AutoCreate: true, NumPartitions: 1, ShutdownTimeout: 30 * time.Second,
		Groups: broker.GroupOptions{Partitions: 50, Config: group.Config{InitialRebalanceDelay: 3 * time.Second, MinSessionTimeout: 6 * time.Second,
			MaxSessionTimeout: 30 * time.Minute, MaxSize: 20_000, OffsetRetention: 7 * 24 * time.Hour}},
	}
}

// ErrConfig marks mistakes in a Config.
var ErrConfig = errors.New("configuration")

// minWALSize is the least size of a ring, in bytes.
const minWALSize = 16 << 20

// minLease is the least lease: a few round trips to the metadata store.
const minLease = 300 * time.Millisecond

// maxPrice is what no object store takes, in dollars.
const maxPrice = 1e6

// minCacheMemory is the least that the tiered reader takes: 32 blocks of 4 MiB.
const minCacheMemory = 128 << 20

// leastTail is the least memory tail that a node takes of itself.
const leastTail = 256 << 20

// memoryTail is the bound of the memory tail: without a flag an eighth of what
// the process may use, the control group's limit or the machine's memory.
func (c *Config) memoryTail() int64 {
	if c.MemoryTail > 0 {
		return c.MemoryTail
	}
	limit, err := memlimit.FromCgroup()
	if err != nil {
		limit, err = memlimit.FromSystem()
	}
	if err != nil {
		return leastTail
	}
	return max(int64(limit/8), leastTail)
}

// defaults are those of topic configs.
func (c *Config) defaults() (*metadata.Defaults, error) {
	if c.Metadata != "" {
		return metadata.NewClusterDefaults(c.TopicDefaults)
	}
	return metadata.NewDefaults(c.TopicDefaults)
}

func (c *Config) bucketURL() string {
	if c.Bucket == "" {
		return "dir://" + filepath.ToSlash(filepath.Join(c.DataDir, "bucket"))
	}
	return c.Bucket
}

// validateCluster checks what agents of a cluster have.
func (c *Config) validateCluster(bad func(format string, args ...any)) {
	if c.Metadata != "" && c.Bucket == "" {
		bad("--bucket is missing: agents of a cluster share one")
	}
	if c.Role != "" && c.Role != RoleLeader && c.Role != RoleReader {
		bad("--role %q: want leader or reader", c.Role)
	}
	if c.Role == RoleReader && c.Metadata == "" {
		bad("--role reader needs --metadata: what it serves is of the other agents of a cluster")
	}
	c.RPC.validate(c.Metadata != "", bad)
	if c.Lease < 0 || c.Lease > 0 && c.Lease < minLease {
		bad("--lease %v: want %v at least", c.Lease, minLease)
	}
}

func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		bad("--data-dir is empty")
	}
	c.validateCluster(bad)
	for flag, addr := range map[string]string{"--kafka-addr": c.KafkaAddr, "--admin-addr": c.AdminAddr, "--http-addr": c.HTTPAddr} {
		if addr == "" && flag == "--http-addr" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("%s %q: want HOST:PORT", flag, addr)
		}
	}
	if c.NodeID < 0 {
		bad("--node-id %d: want 1 or greater", c.NodeID)
	}
	if n := c.Groups.Partitions; n < 1 || n > metadata.MaxPartitions {
		bad("--offsets-topic-partitions %d: want 1 to %d", n, metadata.MaxPartitions)
	}
	if g := c.Groups.Config; g.MinSessionTimeout < 1 || g.MaxSessionTimeout < g.MinSessionTimeout {
		bad("--group-min-session-timeout %v: want more than 0, and not more than --group-max-session-timeout (%v)", g.MinSessionTimeout, g.MaxSessionTimeout)
	}
	if g := c.Groups.Config; g.InitialRebalanceDelay < 0 || g.OffsetRetention <= 0 {
		bad("--group-initial-rebalance-delay %v, --offsets-retention %v: want 0 or greater, and more than 0", g.InitialRebalanceDelay, g.OffsetRetention)
	}
	if n := c.Groups.Config.MaxSize; n < 1 {
		bad("--group-max-size %d: want 1 or greater", n)
	}
	if c.NumPartitions < 1 {
		bad("--num-partitions %d: want 1 or greater", c.NumPartitions)
	}
	if c.WALSize < minWALSize {
		bad("--wal-size %d: want at least 16MiB", c.WALSize)
	}
	if n := c.MemoryTail; n != 0 && n < 16<<20 {
		bad("--memory-tail %d: want at least 16MiB, or 0 for an eighth of the memory", n)
	}
	if c.CacheMemory < minCacheMemory {
		bad("--cache-memory %d: want at least 128MiB", c.CacheMemory)
	}
	for flag, v := range map[string]int{"--max-connections": c.Limits.MaxConnections, "--max-connections-per-ip": c.Limits.MaxPerAddress} {
		if v < 0 {
			bad("%s %d: want 1 or greater, or 0 for the default", flag, v)
		}
	}
	if _, err := c.defaults(); err != nil {
		bad("--topic-config: %w", err)
	}
	if p := c.PerPartition; p != PerPartitionAuto && p != PerPartitionOn && p != PerPartitionOff {
		bad("--metrics-per-partition %q: want auto, on or off", p)
	}
	for flag, v := range map[string]float64{"--price-put": c.Prices.Put, "--price-get": c.Prices.Get, "--price-storage": c.Prices.Storage} {
		if !(v >= 0 && v <= maxPrice) {
			bad("%s %v: want dollars, from 0", flag, v)
		}
	}
	if c.DiskBudget != 0 && c.DiskBudget < 2*c.WALSize {
		bad("--disk-budget %d: want at least twice --wal-size (%d)", c.DiskBudget, c.WALSize)
	}
	return errors.Join(errs...)
}
