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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	os.Exit(cli.Main(ctx, os.Args[1:], cli.Options{Serve: agent.Run, ServeDefaults: agent.Default(), Version: agent.Version,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}
