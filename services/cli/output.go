package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// table is what -o table shows: one row for each thing, cells as text.
type table struct {
	header []string // upper case
	rows   [][]string
}

func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.rows = append(t.rows, row)
}

// write aligns the columns; the last one is not padded.
func (t *table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.header, "\t"))
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// outputFlag gives cmd the flag -o.
func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "output format: table, json or yaml")
	complete(cmd, "output", "table", "json", "yaml")
}

// complete offers fixed values for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was not declared: a mistake in this package
	}
}

// render writes v, whose JSON tags name its fields, or t, its table form.
func (a *app) render(w io.Writer, v any, t *table) error {
	switch a.output {
	case "table":
		return t.write(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		return renderYAML(w, v)
	}
	return fmt.Errorf("%w: --output %q: want table, json or yaml", errUsage, a.output)
}

// renderYAML writes v with the names and the order of its JSON form.
func renderYAML(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b.Bytes(), &node); err != nil { // JSON is YAML
		return fmt.Errorf("encode output: %w", err)
	}
	blockStyle(&node)
	out := yaml.NewEncoder(w)
	out.SetIndent(2)
	if err := out.Encode(&node); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	return out.Close()
}

// blockStyle makes a document parsed from JSON look like YAML. Text that would
// be read as something else keeps its quotes.
func blockStyle(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		n.Style = 0
		return
	}
	if len(n.Content) > 0 {
		n.Style = 0
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}
