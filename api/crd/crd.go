// SPDX-License-Identifier: Apache-2.0

// Package crd holds the CustomResourceDefinitions of the kinds that are served.
//
// Each file is one definition, generated from the Go types that the programs use, with the
// names, columns and field sets that Knative's clients know. Change generate_test.go and run
//
//	go test ./api/crd -update
//
// never the YAML. The schemas carry one short description a field and no more: the API
// server keeps several copies of them in memory.
package crd

import (
	"embed"
	"fmt"
)

//go:embed *.yaml
var files embed.FS

// All returns the definitions as YAML documents, in a stable order.
func All() ([][]byte, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	docs := make([][]byte, 0, len(entries))
	for _, e := range entries {
		doc, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("read definition %s: %w", e.Name(), err)
		}
		docs = append(docs, doc)
	}
	return docs, nil
}
