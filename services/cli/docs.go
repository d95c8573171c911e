package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Docs describes all verbs and flags as Markdown: docs/cli.md.
func Docs(o Options) string {
	a := &app{o: o}
	root := a.root()
	var b strings.Builder
	b.WriteString("# The command line\n\n" +
		"Written by `go test ./services/cli -run TestDocs -update`; do not edit.\n\n" +
		"Every verb also has the flags of [cirrolog](#cirrolog). `CIRROLOG_BROKERS` and `CIRROLOG_ADMIN` stand in for\n" +
		"`--brokers` and `--admin`; the flags of `serve` can be given as `CIRROLOG_<FLAG>` or in a YAML file. Sizes take a\n" +
		"unit (`512MiB`, `1GB`), so do durations (`500ms`, `1h30m`, `7d`).\n\n" +
		"Exit codes: 0 done, 1 failed, 2 mistake in the command line, 3 some of it failed.\n")
	document(&b, root)
	return b.String()
}

func document(b *strings.Builder, cmd *cobra.Command) {
	if cmd.Hidden || cmd.Name() == "help" {
		return
	}
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n", cmd.CommandPath(), long)
	if cmd.Runnable() && !cmd.HasSubCommands() {
		fmt.Fprintf(b, "\n    %s\n", cmd.UseLine())
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n%s\n", indent(cmd.Example))
	}
	flags := cmd.NonInheritedFlags()
	if flags.HasAvailableFlags() {
		b.WriteString("\n| Flag | Default | |\n|---|---|---|\n")
		flags.VisitAll(func(f *pflag.Flag) { documentFlag(b, f) })
	}
	for _, sub := range cmd.Commands() {
		document(b, sub)
	}
}

func documentFlag(b *strings.Builder, f *pflag.Flag) {
	if f.Hidden || f.Name == "help" {
		return
	}
	name := "`--" + f.Name + "`"
	if f.Shorthand != "" {
		name = "`-" + f.Shorthand + "`, " + name
	}
	def := f.DefValue
	switch def {
	case "", "[]", "false":
		def = ""
	default:
		def = "`" + def + "`"
	}
	fmt.Fprintf(b, "| %s %s | %s | %s |\n", name, f.Value.Type(), def, strings.ReplaceAll(f.Usage, "|", "\\|"))
}

func indent(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = "    " + strings.TrimSpace(l)
	}
	return strings.Join(lines, "\n")
}
