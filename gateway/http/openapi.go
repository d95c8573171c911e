package httpgate

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"go.yaml.in/yaml/v3"
)

// openapiYAML describes the routes in OpenAPI 3.1. The tests hold it against
// the table of routes and against every answer they see.
//
//go:embed openapi.yaml
var openapiYAML []byte

// openapiRoutes serve the document.
func openapiRoutes() []route {
	asJSON := sync.OnceValues(openapiJSON)
	serve := func(w http.ResponseWriter, media string, doc []byte) error {
		w.Header().Set("Content-Type", media)
		_, _ = w.Write(doc) // the client is gone: nobody to tell
		return nil
	}
	return []route{
		{"GET /openapi.yaml", nil, func(w http.ResponseWriter, _ *http.Request) error { return serve(w, "application/yaml", openapiYAML) }},
		{"GET /openapi.json", nil, func(w http.ResponseWriter, _ *http.Request) error {
			doc, err := asJSON()
			if err != nil {
				return err
			}
			return serve(w, mediaJSON, doc)
		}},
	}
}

func openapiJSON() ([]byte, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(openapiYAML, &doc); err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI document: %w", err)
	}
	return b, nil
}
