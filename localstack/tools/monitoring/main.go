// Command monitoring decodes objects of the Prometheus operator, YAML documents on stdin, into the operator's own
// types and refuses fields that those don't have. It prints their kinds.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "monitoring:", err)
		os.Exit(1)
	}
}

func run(r io.Reader) error {
	docs := k8syaml.NewYAMLReader(bufio.NewReader(r))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var is struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal(doc, &is); err != nil {
			return err
		}
		var into any
		switch is.APIVersion + " " + is.Kind {
		case "monitoring.coreos.com/v1 ServiceMonitor":
			into = &monitoringv1.ServiceMonitor{}
		case "monitoring.coreos.com/v1 PrometheusRule":
			into = &monitoringv1.PrometheusRule{}
		default:
			return fmt.Errorf("%s %s is no kind that this program knows", is.APIVersion, is.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			return fmt.Errorf("%s: %w", is.Kind, err)
		}
		fmt.Println(is.Kind)
	}
}
