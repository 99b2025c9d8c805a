package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// writeCRDs makes a template of each definition in source. Templates, and not the
// directory crds/ of a chart, since Helm never updates what is there; with an
// annotation that keeps them, and everybody's checkpoints, at an uninstall.
func writeCRDs(source, target string) error {
	files, err := filepath.Glob(filepath.Join(source, "*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there are no definitions in %s", source)
	}
	// A template of a definition that is no more would stay otherwise.
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		definition, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		template, err := crdTemplate(definition)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(target, filepath.Base(file)), template, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// crdTemplate is the template of one definition. The text is taken as it is, so
// that what is installed is what was tested.
func crdTemplate(definition []byte) ([]byte, error) {
	if bytes.Contains(definition, []byte("{{")) {
		return nil, fmt.Errorf("it contains {{, which a template cannot have")
	}
	const annotations = "\nmetadata:\n  annotations:\n"
	if bytes.Count(definition, []byte(annotations)) != 1 {
		return nil, fmt.Errorf("no place for the annotation: want %q once", annotations)
	}
	definition = bytes.Replace(definition, []byte(annotations), []byte(`
metadata:
  labels:
    {{- include "bowline.labels" . | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
`), 1)
	var out bytes.Buffer
	out.WriteString("{{- if .Values.crds.install }}\n{{- /* Generated from crds/ by hack/chart. */}}\n")
	out.Write(definition)
	out.WriteString("{{- end }}\n")
	return out.Bytes(), nil
}
