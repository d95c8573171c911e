package infra

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

// TestRelease: goreleaser.yaml packs files that there are, and builds the program as the Makefile and the Dockerfile
// do. That Goreleaser takes it, `make snapshot` shows.
func TestRelease(t *testing.T) {
	var config struct {
		Builds []struct {
			Main       string
			Env, Flags []string
		}
		Archives []struct{ Files []string }
		NFPMs    []struct {
			Contents []struct{ Src, Dst string }
		} `yaml:"nfpms"`
	}
	into(t, "goreleaser.yaml", &config)
	b := config.Builds[0]
	if len(config.Builds) != 1 || b.Main != "./services/cirrolog" || !slices.Contains(b.Env, "CGO_ENABLED=0") || !slices.Contains(b.Flags, "-tags=grpcnotrace") {
		t.Errorf("builds %+v", config.Builds)
	}
	for file, want := range map[string][]string{"../Makefile": {"GOFLAGS ?= -tags=grpcnotrace", "CGO_ENABLED ?= 0", "./services/cirrolog"}, "Dockerfile": {"-tags=grpcnotrace", "CGO_ENABLED=0", "./services/cirrolog"}} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s has no %s", file, w)
			}
		}
	}
	var files []string
	for _, a := range config.Archives {
		files = append(files, a.Files...)
	}
	places := map[string]bool{}
	for _, c := range config.NFPMs[0].Contents {
		files = append(files, c.Src)
		places[c.Dst] = true
	}
	for _, f := range files {
		if found, err := filepath.Glob(filepath.Join(testenv.Root(), strings.ReplaceAll(f, "/**", ""))); err != nil || len(found) == 0 {
			t.Errorf("there is no %s: %v", f, err)
		}
	}
	for _, verb := range []string{"serve", "agent"} {
		if !places["/etc/cirrolog/"+verb+".yaml"] {
			t.Errorf("no package has /etc/cirrolog/%s.yaml, which the unit reads", verb)
		}
		text, err := os.ReadFile("systemd/" + verb + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^(?:# )?([a-z-]+): `).FindAllStringSubmatch(string(text), -1) {
			checkArguments(t, "systemd/"+verb+".yaml", []string{verb, "--" + m[1] + "="})
		}
	}
}
