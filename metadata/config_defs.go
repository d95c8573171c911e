package metadata

import (
	"math"
	"strconv"
)

// ConfigType is Kafka's type of a config, with its number on the wire.
type ConfigType int8

// Config types.
const (
	TypeBoolean ConfigType = 1
	TypeString  ConfigType = 2
	TypeInt     ConfigType = 3
	TypeLong    ConfigType = 5
	TypeDouble  ConfigType = 6
	TypeList    ConfigType = 7
)

// String returns Kafka's name of the type.
func (t ConfigType) String() string {
	switch t {
	case TypeBoolean:
		return "BOOLEAN"
	case TypeString:
		return "STRING"
	case TypeInt:
		return "INT"
	case TypeLong:
		return "LONG"
	case TypeDouble:
		return "DOUBLE"
	case TypeList:
		return "LIST"
	}
	return strconv.Itoa(int(t))
}

// configDef describes one config of a topic.
type configDef struct {
	name     string
	typ      ConfigType
	kafka    string // Kafka's default; "-" for a config Kafka does not have
	def      string // our default
	min, max float64
	oneOf    []string // of a string, or of each item of a list
	hidden   bool     // accepted, but not described, as in Kafka
	synonyms []synonym
	doc      string
	effect   string // what the value does here
}

// synonym is the broker config that sets the default of a topic config; its
// value times unit is the topic's.
type synonym struct {
	name string
	unit int64
}

func same(names ...string) []synonym {
	out := make([]synonym, len(names))
	for i, n := range names {
		out[i] = synonym{n, 1}
	}
	return out
}

// Values of effect that several configs share.
const (
	honoured   = "honoured"
	noReplicas = "accepted; without effect, the bucket replicates"
)

const (
	maxInt  = float64(math.MaxInt32)
	maxLong = float64(math.MaxInt64)
	longMax = "9223372036854775807"
	hourMs  = 3_600_000
)

// topicConfigDefs returns the table of all topic configs, by name. It is the
// single source of defaults, validation, DescribeConfigs and
// docs/topic-configs.md.
func topicConfigDefs() []configDef {
	defs := append(segmentDefs(), retentionDefs()...)
	defs = append(defs, compactionDefs()...)
	return append(defs, messageDefs()...)
}

func segmentDefs() []configDef {
	return []configDef{
		{name: "segment.bytes", typ: TypeInt, kafka: "1073741824", def: "67108864", min: 1 << 20, max: maxInt,
			synonyms: same("log.segment.bytes"), effect: honoured,
			doc: "Size in bytes at which a segment is closed; closed segments move to the bucket, so smaller ones move sooner."},
		{name: "segment.ms", typ: TypeLong, kafka: "604800000", def: "604800000", min: 1, max: maxLong,
			synonyms: []synonym{{"log.roll.ms", 1}, {"log.roll.hours", hourMs}}, effect: honoured,
			doc: "Age in ms at which a segment is closed even if it is not full."},
		{name: "segment.jitter.ms", typ: TypeLong, kafka: "0", def: "0", min: 0, max: maxLong,
			synonyms: []synonym{{"log.roll.jitter.ms", 1}, {"log.roll.jitter.hours", hourMs}}, effect: "accepted; without effect",
			doc: "Greatest random time in ms by which a segment is closed earlier than segment.ms."},
		{name: "segment.index.bytes", typ: TypeInt, kafka: "10485760", def: "10485760", min: 4, max: maxInt,
			synonyms: same("log.index.size.max.bytes"), effect: "accepted; without effect, indexes are not preallocated",
			doc: "Size in bytes of a preallocated offset index file."},
		{name: "index.interval.bytes", typ: TypeInt, kafka: "4096", def: "4096", min: 0, max: maxInt,
			synonyms: same("log.index.interval.bytes"), effect: honoured,
			doc: "Bytes of log per entry of the offset index."},
		{name: "preallocate", typ: TypeBoolean, kafka: "false", def: "false",
			synonyms: same("log.preallocate"), effect: "accepted; without effect",
			doc: "Whether a segment file is preallocated."},
		{name: "file.delete.delay.ms", typ: TypeLong, kafka: "60000", def: "60000", min: 0, max: maxLong,
			synonyms: same("log.segment.delete.delay.ms"), effect: "accepted; without effect, a file goes when its last reader is done",
			doc: "Time in ms that a file waits between being taken out of use and being deleted."},
		{name: "flush.messages", typ: TypeLong, kafka: longMax, def: longMax, min: 1, max: maxLong,
			synonyms: same("log.flush.interval.messages"), effect: "accepted; without effect, every acknowledged record is synced",
			doc: "Number of messages after which the log is synced."},
		{name: "flush.ms", typ: TypeLong, kafka: longMax, def: longMax, min: 0, max: maxLong,
			synonyms: same("log.flush.interval.ms", "log.flush.scheduler.interval.ms"), effect: "accepted; without effect, every acknowledged record is synced",
			doc: "Time in ms after which the log is synced."},
		{name: "internal.segment.bytes", typ: TypeInt, kafka: "", def: "", min: 1, max: maxInt, hidden: true, effect: honoured,
			doc: "Overrides segment.bytes without its lower bound; for tests only."},
	}
}

func retentionDefs() []configDef {
	return []configDef{
		{name: "cleanup.policy", typ: TypeList, kafka: "delete", def: "delete", oneOf: []string{"compact", "delete"},
			synonyms: same("log.cleanup.policy"), effect: "honoured; compact needs remote storage, as segments are compacted in the bucket, and refuses records without a key. Retention never applies to a topic without delete",
			doc: "What happens to old segments: delete by retention, compact by key, both, or (empty) nothing."},
		{name: "retention.ms", typ: TypeLong, kafka: "604800000", def: "604800000", min: -1, max: maxLong,
			synonyms: []synonym{{"log.retention.ms", 1}, {"log.retention.minutes", 60_000}, {"log.retention.hours", hourMs}}, effect: honoured,
			doc: "Time in ms that records are kept in total, SSD and bucket; -1 for ever."},
		{name: "retention.bytes", typ: TypeLong, kafka: "-1", def: "-1", min: -maxLong, max: maxLong,
			synonyms: same("log.retention.bytes"), effect: honoured,
			doc: "Bytes kept of each partition in total, SSD and bucket; -1 without limit."},
		{name: "local.retention.ms", typ: TypeLong, kafka: "-2", def: "3600000", min: -2, max: maxLong,
			synonyms: same("log.local.retention.ms"), effect: honoured + "; the default is cut to retention.ms where that is shorter",
			doc: "Time in ms that records already in the bucket stay on SSD; -2 as long as retention.ms says."},
		{name: "local.retention.bytes", typ: TypeLong, kafka: "-2", def: "-2", min: -2, max: maxLong,
			synonyms: same("log.local.retention.bytes"), effect: honoured,
			doc: "Bytes of each partition, already in the bucket, that stay on SSD; -2 as many as retention.bytes says."},
		{name: "remote.storage.enable", typ: TypeBoolean, kafka: "false", def: "true", effect: honoured,
			doc: "Whether closed segments move to the bucket."},
		{name: "remote.log.copy.disable", typ: TypeBoolean, kafka: "false", def: "false", effect: honoured,
			doc: "Whether segments no longer move to the bucket while those there stay readable."},
		{name: "remote.log.delete.on.disable", typ: TypeBoolean, kafka: "false", def: "false", effect: "allows remote.storage.enable to be set to false",
			doc: "Whether the bucket's copy is given up when remote.storage.enable is set to false."},
		{name: "remote.copy.lag.ms", typ: TypeLong, kafka: "0", def: "0", min: -1, max: maxLong, effect: "accepted; without effect, segments move when they are closed",
			doc: "Time in ms that a closed segment waits before it moves to the bucket; -1 as long as local retention."},
		{name: "remote.copy.lag.bytes", typ: TypeLong, kafka: "0", def: "0", min: -1, max: maxLong, effect: "accepted; without effect, segments move when they are closed",
			doc: "Bytes of newer log that a closed segment waits for before it moves to the bucket; -1 as many as local retention."},
		{name: durabilityConfig, typ: TypeString, kafka: "-", def: string(DurabilityLocal), oneOf: []string{string(DurabilityLocal), string(DurabilityObject)},
			synonyms: same(durabilityConfig), effect: "honoured, and fixed when the topic is created; in a cluster (`cirrolog agent`) the default is object, a node that is alone (`cirrolog serve`) has local only",
			doc: "What acks=all waits for: local, the synced log on the leader's SSD; object, the object store."},
	}
}

func compactionDefs() []configDef {
	return []configDef{
		{name: "delete.retention.ms", typ: TypeLong, kafka: "86400000", def: "86400000", min: 0, max: maxLong,
			synonyms: same("log.cleaner.delete.retention.ms"), effect: honoured,
			doc: "Time in ms that tombstones of a compacted topic stay after they were first cleaned."},
		{name: "min.compaction.lag.ms", typ: TypeLong, kafka: "0", def: "0", min: 0, max: maxLong,
			synonyms: same("log.cleaner.min.compaction.lag.ms"), effect: honoured,
			doc: "Least time in ms that a record stays uncompacted."},
		{name: "max.compaction.lag.ms", typ: TypeLong, kafka: longMax, def: longMax, min: 1, max: maxLong,
			synonyms: same("log.cleaner.max.compaction.lag.ms"), effect: honoured,
			doc: "Greatest time in ms that a record stays ineligible for compaction."},
		{name: "min.cleanable.dirty.ratio", typ: TypeDouble, kafka: "0.5", def: "0.5", min: 0, max: 1,
			synonyms: same("log.cleaner.min.cleanable.ratio"), effect: honoured,
			doc: "Least share of uncompacted log before it is compacted."},
	}
}

func messageDefs() []configDef {
	const recompress = "accepted; batches are stored as the producer compressed them"
	return []configDef{
		{name: "max.message.bytes", typ: TypeInt, kafka: "1048588", def: "1048588", min: 0, max: maxInt,
			synonyms: same("message.max.bytes"), effect: honoured,
			doc: "Greatest size in bytes of a record batch, as sent (compressed)."},
		{name: "message.timestamp.type", typ: TypeString, kafka: "CreateTime", def: "CreateTime", oneOf: []string{"CreateTime", "LogAppendTime"},
			synonyms: same("log.message.timestamp.type"), effect: honoured,
			doc: "Whether a record's timestamp is the producer's or the time of the append."},
		{name: "message.timestamp.before.max.ms", typ: TypeLong, kafka: longMax, def: longMax, min: 0, max: maxLong,
			synonyms: same("log.message.timestamp.before.max.ms"), effect: honoured,
			doc: "How far in ms a producer's timestamp may lie in the past."},
		{name: "message.timestamp.after.max.ms", typ: TypeLong, kafka: "3600000", def: "3600000", min: 0, max: maxLong,
			synonyms: same("log.message.timestamp.after.max.ms"), effect: honoured,
			doc: "How far in ms a producer's timestamp may lie in the future."},
		{name: "compression.type", typ: TypeString, kafka: "producer", def: "producer",
			oneOf:    []string{"uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"},
			synonyms: same("compression.type"), effect: recompress,
			doc: "Compression of the stored batches; producer keeps what the producer chose."},
		{name: "compression.gzip.level", typ: TypeInt, kafka: "-1", def: "-1", min: -1, max: 9,
			synonyms: same("compression.gzip.level"), effect: recompress, doc: "Level of gzip, 1 to 9, or -1 for its default."},
		{name: "compression.lz4.level", typ: TypeInt, kafka: "9", def: "9", min: 1, max: 17,
			synonyms: same("compression.lz4.level"), effect: recompress, doc: "Level of lz4."},
		{name: "compression.zstd.level", typ: TypeInt, kafka: "3", def: "3", min: -131072, max: 22,
			synonyms: same("compression.zstd.level"), effect: recompress, doc: "Level of zstd."},
		{name: "min.insync.replicas", typ: TypeInt, kafka: "1", def: "1", min: 1, max: maxInt,
			synonyms: same("min.insync.replicas"), effect: noReplicas,
			doc: "Least number of replicas that must have a record before acks=all is answered."},
		{name: "unclean.leader.election.enable", typ: TypeBoolean, kafka: "false", def: "false",
			synonyms: same("unclean.leader.election.enable"), effect: "accepted; without effect, no leader is ever elected without all acknowledged records",
			doc: "Whether a replica that lacks records may become leader."},
		{name: "leader.replication.throttled.replicas", typ: TypeList, kafka: "", def: "", effect: noReplicas,
			doc: "Replicas whose replication is throttled on the leader: * or partition:broker,…"},
		{name: "follower.replication.throttled.replicas", typ: TypeList, kafka: "", def: "", effect: noReplicas,
			doc: "Replicas whose replication is throttled on the follower: * or partition:broker,…"},
	}
}
