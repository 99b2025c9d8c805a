package main

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// output is how objects are written to standard output. What is said to people
// besides goes to standard error, so that a program can read the rest.
type output struct{ format string }

func (o *output) addFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "write the object itself: json or yaml")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (o *output) check() error {
	switch o.format {
	case "", "json", "yaml":
		return nil
	}
	return usagef("--output is %q, want json or yaml", o.format)
}

// print writes an object if the flags ask for that.
func (c *cli) print(o *output, object client.Object) error {
	if o.format == "" {
		return nil
	}
	object.SetManagedFields(nil)
	object.GetObjectKind().SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindVolumeCheckpoint))
	return c.encode(o, object)
}

// printList writes a list, as kubectl does.
func (c *cli) printList(o *output, list *v1alpha1.VolumeCheckpointList) error {
	for i := range list.Items {
		list.Items[i].ManagedFields = nil
		list.Items[i].SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindVolumeCheckpoint))
	}
	list.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindVolumeCheckpoint + "List"))
	return c.encode(o, list)
}

func (c *cli) encode(o *output, object any) error {
	var b []byte
	var err error
	if o.format == "json" {
		b, err = json.MarshalIndent(object, "", "  ")
		b = append(b, '\n')
	} else {
		b, err = yaml.Marshal(object)
		b = append([]byte("---\n"), b...)
	}
	if err == nil {
		_, err = c.out.Write(b)
	}
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// sayf tells a person something.
func (c *cli) sayf(format string, args ...any) { fmt.Fprintf(c.errOut, format+"\n", args...) }

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
