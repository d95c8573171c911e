package metadata

import (
	"maps"
	"slices"
	"strconv"
)

// ConfigSource says where a config comes from, with Kafka's number on the wire.
type ConfigSource int8

// Config sources.
const (
	SourceDynamicTopic ConfigSource = 1
	SourceStaticBroker ConfigSource = 4
	SourceDefault      ConfigSource = 5
)

// Synonym is a further place a config's value may come from, by precedence.
type Synonym struct {
	Name   string
	Value  *string
	Source ConfigSource
}

// ConfigEntry is one config as DescribeConfigs shows it.
type ConfigEntry struct {
	Name      string
	Value     *string // nil: not set
	Source    ConfigSource
	ReadOnly  bool
	Sensitive bool
	Type      ConfigType
	Doc       string
	Synonyms  []Synonym // the one in force first
}

// Describe returns all configs of a topic that sets these, by name.
func (d *Defaults) Describe(topic map[string]string) []ConfigEntry {
	out := make([]ConfigEntry, 0, len(d.names))
	for _, name := range d.names {
		def := d.defs[name]
		if def.hidden {
			continue
		}
		e := ConfigEntry{Name: name, Type: def.typ, Doc: def.doc, Source: SourceDefault}
		if v, ok := topic[name]; ok {
			e.Source = SourceDynamicTopic
			e.Synonyms = append(e.Synonyms, Synonym{Name: name, Value: &v, Source: SourceDynamicTopic})
		}
		if s, ok := d.static[name]; ok {
			e.Source = min(e.Source, SourceStaticBroker)
			e.Synonyms = append(e.Synonyms, Synonym{Name: s.name, Value: &s.raw, Source: SourceStaticBroker})
		}
		syn, def0 := def.defaultHolder()
		e.Synonyms = append(e.Synonyms, Synonym{Name: syn, Value: &def0, Source: SourceDefault})
		v := d.value(name, topic)
		e.Value = &v
		out = append(out, e)
	}
	return out
}

// defaultHolder is the broker config that carries the built-in default, and its
// value: of several the last, as log.retention.hours for retention.ms.
func (c configDef) defaultHolder() (name, value string) {
	if len(c.synonyms) == 0 {
		return c.name, c.def
	}
	syn := c.synonyms[len(c.synonyms)-1]
	if syn.unit == 1 {
		return syn.name, c.def
	}
	n, err := strconv.ParseInt(c.def, 10, 64)
	if err != nil || n < 0 {
		return syn.name, c.def
	}
	return syn.name, strconv.FormatInt(n/syn.unit, 10)
}

// BrokerConfigs returns the broker's configs for DescribeConfigs, read-only, by
// name: the defaults of topics, and settings, which are values under Kafka's
// names that the agent was started with (node.id, num.partitions, listeners…).
func (d *Defaults) BrokerConfigs(settings map[string]string) []ConfigEntry {
	byName := map[string]ConfigEntry{}
	for _, name := range d.names {
		def := d.defs[name]
		holder, value := def.defaultHolder()
		for _, syn := range def.synonyms {
			e := ConfigEntry{Name: syn.name, Source: SourceDefault, ReadOnly: true, Type: def.typ, Doc: "Default of the topic config " + name + ": " + def.doc}
			if syn.unit != 1 {
				e.Type = TypeInt
			}
			if raw, ok := d.broker[syn.name]; ok {
				e.Value, e.Source = &raw, SourceStaticBroker
				e.Synonyms = append(e.Synonyms, Synonym{Name: syn.name, Value: &raw, Source: SourceStaticBroker})
			}
			if syn.name == holder {
				if e.Value == nil {
					e.Value = &value
				}
				e.Synonyms = append(e.Synonyms, Synonym{Name: syn.name, Value: &value, Source: SourceDefault})
			}
			byName[syn.name] = e
		}
	}
	for _, b := range brokerDefs() {
		e := ConfigEntry{Name: b.name, Source: SourceDefault, ReadOnly: true, Type: b.typ, Doc: b.doc}
		if b.def != "" {
			e.Value = &b.def
			e.Synonyms = []Synonym{{Name: b.name, Value: &b.def, Source: SourceDefault}}
		}
		byName[b.name] = e
	}
	for name, v := range settings {
		e, ok := byName[name]
		if !ok {
			e = ConfigEntry{Name: name, ReadOnly: true, Type: TypeString}
		}
		e.Value, e.Source = &v, SourceStaticBroker
		e.Synonyms = append([]Synonym{{Name: name, Value: &v, Source: SourceStaticBroker}}, e.Synonyms...)
		byName[name] = e
	}
	out := make([]ConfigEntry, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out
}

type brokerDef struct {
	name string
	typ  ConfigType
	def  string // "": none
	doc  string
}

// brokerDefs are broker configs that are not the default of a topic config and
// that administration tools ask for.
func brokerDefs() []brokerDef {
	return []brokerDef{
		{"advertised.listeners", TypeString, "", "Addresses that clients are told to use."},
		{"auto.create.topics.enable", TypeBoolean, "false", "Whether asking for an unknown topic creates it."},
		{"broker.id", TypeInt, "", "Id of this agent among the nodes."},
		{"broker.rack", TypeString, "", "Rack or zone of this agent."},
		{"default.replication.factor", TypeInt, "1", "Replication factor that a new topic shows."},
		{"delete.topic.enable", TypeBoolean, "true", "Whether topics can be deleted."},
		{"listeners", TypeString, "", "Addresses this agent listens on."},
		{"log.dirs", TypeString, "", "Directory of the local log."},
		{"node.id", TypeInt, "", "Id of this agent among the nodes."},
		{"num.partitions", TypeInt, "1", "Partitions of a topic created without a number."},
	}
}
