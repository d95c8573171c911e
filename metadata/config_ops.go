package metadata

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// OpKind is what a ConfigOp does, with Kafka's number on the wire.
type OpKind int8

// Kinds of ConfigOp.
const (
	OpSet      OpKind = 0
	OpDelete   OpKind = 1 // back to the default
	OpAppend   OpKind = 2 // items of a list
	OpSubtract OpKind = 3
)

// ConfigOp is one change of a config (Kafka's IncrementalAlterConfigs).
type ConfigOp struct {
	Key   string
	Value *string // nil only for OpDelete
	Kind  OpKind
}

// Apply returns the configs that ops make of the topic's current ones, which it
// leaves alone, and validates them as a whole. Append and subtract work on
// lists only, from the effective value. Errors wrap ErrInvalidConfig, or
// ErrInvalidRequest for a key given twice, a missing value or an unknown kind.
func (d *Defaults) Apply(topic map[string]string, ops []ConfigOp) (map[string]string, error) {
	out := maps.Clone(topic)
	if out == nil {
		out = map[string]string{}
	}
	seen := map[string]bool{}
	for _, op := range ops {
		def, ok := d.defs[op.Key]
		switch {
		case seen[op.Key]:
			return nil, fmt.Errorf("%w: duplicate config key %.100q", ErrInvalidRequest, op.Key)
		case !ok:
			return nil, fmt.Errorf("%w: unknown topic config name: %.100q", ErrInvalidConfig, op.Key)
		case op.Value == nil && op.Kind != OpDelete:
			return nil, fmt.Errorf("%w: null value not supported for config %s", ErrInvalidRequest, op.Key)
		}
		seen[op.Key] = true
		if err := d.applyOne(out, topic, def, op); err != nil {
			return nil, err
		}
	}
	after, err := d.Parse(out)
	if err != nil {
		return nil, err
	}
	before, _ := d.ParseStored(topic)
	if err := checkChange(before, after); err != nil {
		return nil, err
	}
	return out, nil
}

func (d *Defaults) applyOne(out, topic map[string]string, def configDef, op ConfigOp) error {
	switch op.Kind {
	case OpSet:
		out[op.Key] = *op.Value
	case OpDelete:
		delete(out, op.Key)
	case OpAppend, OpSubtract:
		if def.typ != TypeList {
			return fmt.Errorf("%w: can't append to or subtract from config %s: its type is %s, not LIST", ErrInvalidConfig, op.Key, def.typ)
		}
		items := splitList(d.value(op.Key, topic))
		for _, item := range splitList(*op.Value) {
			has := slices.Contains(items, item)
			if op.Kind == OpAppend && !has {
				items = append(items, item)
			}
			if op.Kind == OpSubtract {
				items = slices.DeleteFunc(items, func(s string) bool { return s == item })
			}
		}
		out[op.Key] = strings.Join(items, ",")
	default:
		return fmt.Errorf("%w: unknown operation %d on config %s, want 0 (set) to 3 (subtract)", ErrInvalidRequest, op.Kind, op.Key)
	}
	return nil
}

// Replace returns and validates configs that replace the topic's current ones
// (Kafka's AlterConfigs).
func (d *Defaults) Replace(topic map[string]string, configs map[string]*string) (map[string]string, error) {
	out, err := plainConfigs(configs)
	if err != nil {
		return nil, err
	}
	if class, set := topic[durabilityConfig]; set && configs[durabilityConfig] == nil {
		out[durabilityConfig] = class // it can't be reset
	}
	after, err := d.Parse(out)
	if err != nil {
		return nil, err
	}
	before, _ := d.ParseStored(topic)
	return out, checkChange(before, after)
}

// plainConfigs refuses null values, as Kafka does.
func plainConfigs(configs map[string]*string) (map[string]string, error) {
	out := make(map[string]string, len(configs))
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		if configs[name] == nil {
			return nil, fmt.Errorf("%w: null value not supported for topic config %.100q", ErrInvalidConfig, name)
		}
		out[name] = *configs[name]
	}
	return out, nil
}
