package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

//go:embed schema.json
var published []byte

// block is a block of schema.json, as schema.py writes it.
type block struct {
	Attributes map[string][2]string `json:"attributes"` // type and required, optional or computed
	Blocks     map[string]nested    `json:"blocks"`
}

// nested is a block within another.
type nested struct {
	Nesting string // list, set or single
	Most    int64  // 0: any number
	Block   *block
}

// UnmarshalJSON implements json.Unmarshaler: [nesting, most, block], and "required" behind, which the schemas of the
// provider do not enforce for blocks either.
func (n *nested) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) < 3 {
		return fmt.Errorf("a nested block of %d parts", len(parts))
	}
	for i, into := range []any{&n.Nesting, &n.Most, &n.Block} {
		if err := json.Unmarshal(parts[i], into); err != nil {
			return err
		}
	}
	return nil
}

type schemas struct {
	Provider  *block            `json:"provider"`
	Resources map[string]*block `json:"resources"`
}

func readSchemas() (*schemas, error) {
	s := &schemas{}
	return s, json.Unmarshal(published, s)
}

// alsoComputed are arguments that the provider fills when they are not given; the published names do not tell.
var alsoComputed = []string{"id", "region", "bucket", "tags_all"}

var secret = []string{"secret_key", "access_key", "token", "auth_token"}

// schema is the block in Terraform's protocol.
func (b *block) schema(top bool) *tfprotov6.SchemaBlock {
	out := &tfprotov6.SchemaBlock{}
	for _, name := range slices.Sorted(maps.Keys(b.Attributes)) {
		a := b.Attributes[name]
		out.Attributes = append(out.Attributes, &tfprotov6.SchemaAttribute{
			Name: name, Type: typeOf(a[0]), Required: a[1] == "required", Optional: a[1] == "optional",
			Computed:  a[1] == "computed" || top && a[1] == "optional" && slices.Contains(alsoComputed, name),
			Sensitive: slices.Contains(secret, name),
		})
	}
	for _, name := range slices.Sorted(maps.Keys(b.Blocks)) {
		n := b.Blocks[name]
		nb := &tfprotov6.SchemaNestedBlock{TypeName: name, Block: n.Block.schema(false), Nesting: n.nesting()}
		if nb.Nesting != tfprotov6.SchemaNestedBlockNestingModeSingle {
			nb.MaxItems = n.Most
		}
		out.BlockTypes = append(out.BlockTypes, nb)
	}
	return out
}

func (n nested) nesting() tfprotov6.SchemaNestedBlockNestingMode {
	switch n.Nesting {
	case "set":
		return tfprotov6.SchemaNestedBlockNestingModeSet
	case "single":
		return tfprotov6.SchemaNestedBlockNestingModeSingle
	}
	return tfprotov6.SchemaNestedBlockNestingModeList
}

// typeOf reads string, list(string) and the like.
func typeOf(s string) tftypes.Type {
	kind, of, _ := strings.Cut(strings.TrimSuffix(s, ")"), "(")
	switch kind {
	case "number":
		return tftypes.Number
	case "bool":
		return tftypes.Bool
	case "dynamic":
		return tftypes.DynamicPseudoType
	case "list":
		return tftypes.List{ElementType: typeOf(of)}
	case "set":
		return tftypes.Set{ElementType: typeOf(of)}
	case "map":
		return tftypes.Map{ElementType: typeOf(of)}
	}
	return tftypes.String
}
