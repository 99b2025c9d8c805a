// Command chart writes the parts of charts/bowline that are made from others: the
// templates of the CustomResourceDefinitions, from crds/, and README.md, from the
// comments in values.yaml. Call it in the top directory of the checkout; `make
// generate` does.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	chartDir = "charts/bowline"
	crdDir   = "crds"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// run writes the generated files of the checkout root.
func run(root string) error {
	if err := writeCRDs(filepath.Join(root, crdDir), filepath.Join(root, chartDir, "templates/crds")); err != nil {
		return err
	}
	return writeReadme(filepath.Join(root, chartDir))
}
