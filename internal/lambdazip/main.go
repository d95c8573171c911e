// Command lambdazip builds the Lambda functions for provided.al2023 as zip files, the same bytes wherever and whenever
// they are built with one version of Go.
package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// names are the functions; each is services/lambda/NAME.
func names() []string { return []string{"ingest", "sweep", "verify"} }

func main() {
	out := flag.String("o", filepath.Join(".cache", "lambda"), "directory for the zip files")
	arch := flag.String("arch", "arm64", "arm64 or amd64")
	flag.Parse()
	for _, name := range names() {
		if err := run(*out, name, *arch); err != nil {
			fmt.Fprintf(os.Stderr, "lambdazip: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
}

func run(out, name, arch string) error {
	path, program, err := build(".", out, name, arch)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b) // as AWS shows it (CodeSha256) and Terraform takes it (source_code_hash)
	fmt.Printf("%s %d bytes, program %d bytes, sha256 %s\n", path, len(b), program, base64.StdEncoding.EncodeToString(sum[:]))
	return nil
}

// build builds a function from the module in root and returns its zip file and the size of the program in it.
func build(root, out, name, arch string) (path string, program int, err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", 0, err
	}
	dir, err := os.MkdirTemp("", "lambdazip-")
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin := filepath.Join(dir, "bootstrap")
	// Nothing of where and from which commit: neither paths nor the state of the work tree.
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace,lambda.norpc", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", bin, "./services/lambda/"+name)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	cmd.Env = append(os.Environ(), "GOFLAGS=", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM64=v8.0", "GOAMD64=v1", "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return "", 0, fmt.Errorf("go build: %w", err)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		return "", 0, err
	}
	z, err := pack(b)
	if err != nil {
		return "", 0, err
	}
	path = filepath.Join(out, name+".zip")
	return path, len(b), os.WriteFile(path, z, 0o644)
}

// pack makes a zip file of the program alone, as provided.al2023 wants it.
func pack(program []byte) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	h := &zip.FileHeader{Name: "bootstrap", Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
	h.SetMode(0o755)
	w, err := z.CreateHeader(h)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
