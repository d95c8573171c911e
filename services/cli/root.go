// Package cli is the command line: the client verbs, and the flags of the
// server ones, whose work is passed in.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cirrolog/cirrolog/services/agent"
)

// Exit codes.
const (
	exitOK      = 0
	exitError   = 1
	exitUsage   = 2
	exitPartial = 3
)

// Options of Main.
type Options struct {
	// Serve runs an agent until ctx ends.
	Serve         func(ctx context.Context, cfg agent.Config, log *slog.Logger) error
	ServeDefaults agent.Config
	Version       func() (version, commit string)

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// app is what the verbs share.
type app struct {
	o       Options
	brokers []string
	admin   string
	output  string
	yes     bool
}

// errUsage marks mistakes in the command line.
var errUsage = errors.New("usage")

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, o Options) int {
	a := &app{o: o}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(o.Stdin)
	root.SetOut(o.Stdout)
	root.SetErr(o.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errPartial):
		fmt.Fprintln(o.Stderr, "error:", err)
		return exitPartial
	case errors.Is(err, errUsage), strings.HasPrefix(err.Error(), "unknown command"): // cobra has no error value for it
		fmt.Fprintln(o.Stderr, "error:", err)
		return exitUsage
	}
	fmt.Fprintln(o.Stderr, "error:", err)
	return exitError
}

// errPartial marks that some of the work failed.
var errPartial = errors.New("not everything was done")

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "cirrolog",
		Short:         "Kafka-compatible streaming on object storage",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringSliceVar(&a.brokers, "brokers", envList("CIRROLOG_BROKERS", "127.0.0.1:9092"), "Kafka addresses of the cluster, HOST:PORT,…")
	f.StringVar(&a.admin, "admin", envOr("CIRROLOG_ADMIN", "127.0.0.1:9644"), "admin address of an agent, HOST:PORT")
	f.BoolVar(&a.yes, "yes", false, "do not ask before destructive actions")
	serve, agents := a.serveCmd(), a.agentCmd()
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		return knownVariables(os.Environ(), serve.Flags(), agents.Flags())
	}
	root.AddCommand(serve, agents, a.gatewayCmd(), a.topicCmd(), a.produceCmd(), a.consumeCmd(), a.replayCmd(), a.groupCmd(), a.segmentCmd(), a.clusterCmd(), a.recoverCmd(), a.sweepCmd(), a.benchCmd(), a.costCmd(), a.doctorCmd(), a.healthCmd(), a.versionCmd())
	return root
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func (a *app) versionCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print version and commit", Args: args(cobra.NoArgs)}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := struct {
			Version string `json:"version"`
			Commit  string `json:"commit"`
			Go      string `json:"go"`
		}{Go: runtime.Version()}
		out.Version, out.Commit = a.o.Version()
		t := table{header: []string{"VERSION", "COMMIT", "GO"}}
		t.add(out.Version, out.Commit, out.Go)
		return a.render(cmd.OutOrStdout(), out, &t)
	}
	return cmd
}
