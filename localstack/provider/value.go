package main

import (
	"fmt"
	"math/big"

	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// unknown stands for a value that is known only after apply.
type unknown struct{}

// object is the value of a block: string, bool, int64, []any, map[string]any, unknown, or nil under each name.
type object = map[string]any

// plain turns a value of the protocol into an ordinary one.
func plain(v tftypes.Value) (any, error) {
	if !v.IsKnown() {
		return unknown{}, nil
	}
	if v.IsNull() {
		return nil, nil
	}
	t := v.Type()
	switch {
	case t.Is(tftypes.String):
		var s string
		err := v.As(&s)
		return s, err
	case t.Is(tftypes.Bool):
		var b bool
		err := v.As(&b)
		return b, err
	case t.Is(tftypes.Number):
		f := new(big.Float)
		if err := v.As(f); err != nil {
			return nil, err
		}
		n, exact := f.Int64()
		if exact != big.Exact {
			return nil, fmt.Errorf("%v is not a whole number", f)
		}
		return n, nil
	case t.Is(tftypes.List{}) || t.Is(tftypes.Set{}) || t.Is(tftypes.Tuple{}):
		var all []tftypes.Value
		if err := v.As(&all); err != nil {
			return nil, err
		}
		out := make([]any, len(all))
		for i := range all {
			var err error
			if out[i], err = plain(all[i]); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	var all map[string]tftypes.Value
	if err := v.As(&all); err != nil {
		return nil, err
	}
	out := object{}
	for name := range all {
		p, err := plain(all[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = p
	}
	return out, nil
}

// wrap is the way back. What a block's object leaves out is null, a list or set of blocks empty.
func wrap(t tftypes.Type, v any, blocks map[string]nested) tftypes.Value {
	if _, ok := v.(unknown); ok {
		return tftypes.NewValue(t, tftypes.UnknownValue)
	}
	if v == nil {
		return tftypes.NewValue(t, nil)
	}
	switch t := t.(type) {
	case tftypes.Object:
		out, in := map[string]tftypes.Value{}, v.(object)
		for name, at := range t.AttributeTypes {
			n, isBlock := blocks[name]
			value := in[name]
			if value == nil && isBlock && n.Nesting != "single" {
				value = []any{}
			}
			var inner map[string]nested
			if isBlock {
				inner = n.Block.Blocks
			}
			out[name] = wrap(at, value, inner)
		}
		return tftypes.NewValue(t, out)
	case tftypes.List:
		return tftypes.NewValue(t, wrapAll(t.ElementType, v.([]any), blocks))
	case tftypes.Set:
		return tftypes.NewValue(t, wrapAll(t.ElementType, v.([]any), blocks))
	case tftypes.Map:
		out := map[string]tftypes.Value{}
		for k, e := range v.(object) {
			out[k] = wrap(t.ElementType, e, nil)
		}
		return tftypes.NewValue(t, out)
	}
	return tftypes.NewValue(t, v)
}

func wrapAll(t tftypes.Type, v []any, blocks map[string]nested) []tftypes.Value {
	out := make([]tftypes.Value, len(v))
	for i := range v {
		out[i] = wrap(t, v[i], blocks)
	}
	return out
}

// given lists the paths of what an object says, as "rule.filter.prefix": attributes that are not null, and blocks.
func given(o object, b *block) []string {
	var out []string
	for name := range b.Attributes {
		if o[name] != nil {
			out = append(out, name)
		}
	}
	for name, n := range b.Blocks {
		items, _ := o[name].([]any)
		if one, ok := o[name].(object); ok {
			items = []any{one}
		}
		for _, item := range items {
			out = append(out, name)
			if inner, ok := item.(object); ok {
				for _, p := range given(inner, n.Block) {
					out = append(out, name+"."+p)
				}
			}
		}
	}
	return out
}

// text, flag and whole read an object; what is null or unknown is the zero value.
func text(o object, name string) string { s, _ := o[name].(string); return s }

func flag(o object, name string) bool { b, _ := o[name].(bool); return b }

func whole(o object, name string) int64 { n, _ := o[name].(int64); return n }

// first is the only block of its name, or nil.
func first(o object, name string) object {
	if all, ok := o[name].([]any); ok && len(all) > 0 {
		one, _ := all[0].(object)
		return one
	}
	return nil
}

func items(o object, name string) []object {
	var out []object
	all, _ := o[name].([]any)
	for _, e := range all {
		if one, ok := e.(object); ok {
			out = append(out, one)
		}
	}
	return out
}
