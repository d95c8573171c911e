// Command compose reads a Compose file as Docker Compose does, with all its profiles, and prints what it says
// as JSON: interpolated, normalized, and checked by the schema of the Compose specification.
//
//	compose FILE
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "compose:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one file, have %q", args)
	}
	o, err := cli.NewProjectOptions(args, cli.WithWorkingDirectory(filepath.Dir(args[0])), cli.WithOsEnv, cli.WithProfiles([]string{"*"}), cli.WithInterpolation(true))
	if err != nil {
		return err
	}
	p, err := o.LoadProject(ctx)
	if err != nil {
		return err
	}
	b, err := p.MarshalJSON()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}
