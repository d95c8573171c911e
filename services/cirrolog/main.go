// Command cirrolog is the one binary: agent, gateway and client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cirrolog/cirrolog/services/agent"
	"github.com/cirrolog/cirrolog/services/cli"
)

func main() {
	os.Exit(cli.Main(untilSignal(), os.Args[1:], cli.Options{Serve: agent.Run, ServeDefaults: agent.Default(), Version: agent.Version,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}

// untilSignal returns a context that the first SIGINT or SIGTERM cancels; a
// second one ends the process at once. The signals' default action is back before
// the context is cancelled, so that no second signal is swallowed by the first's
// handling, however soon it comes.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	caught := make(chan os.Signal, 2)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-caught
		signal.Stop(caught)
		select {
		case second := <-caught:
			_ = syscall.Kill(os.Getpid(), second.(syscall.Signal))
		default:
		}
		cancel()
	}()
	return ctx
}
