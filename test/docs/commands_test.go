package docs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"

	"github.com/bowline-csi/bowline/test/apiserver"
)

// others are the programs that the documentation uses besides those that are
// looked at more closely.
var others = strings.Fields(`apt-get cat cd cp docker echo exit export findmnt fsfreeze fuser git mkdir
	mkfs.ext4 mount sudo truncate umount`)

// checker knows what commands may be like.
type checker struct {
	programs string // directory of ours
	kinds    map[string]bool
	targets  map[string]bool // of make
	values   map[string]any  // of the chart
	files    map[string]bool // that the page at hand makes
	helps    map[string]string
}

// Every command of a block marked sh is one that there is.
func TestShellBlocks(t *testing.T) {
	c := &checker{programs: build(t), kinds: kinds(t), targets: map[string]bool{}, helps: map[string]string{}}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(string(makefile), -1) {
		c.targets[m[1]] = true
	}
	values, err := os.ReadFile(filepath.Join(root, "charts/bowline/values.yaml"))
	if err == nil {
		err = yaml.Unmarshal(values, &c.values)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range pages(t) {
		c.files = map[string]bool{}
		for _, b := range p.blocks {
			c.files[b.file()] = true
		}
		for _, b := range p.blocks {
			if b.lang != "sh" {
				continue
			}
			where := fmt.Sprintf("%s:%d", p.path, b.line)
			sh := exec.Command("sh", "-n")
			sh.Stdin = strings.NewReader(b.text)
			if said, err := sh.CombinedOutput(); err != nil {
				t.Errorf("%s: not a script: %s", where, said)
				continue
			}
			for _, words := range commands(b.text) {
				n++
				if err := c.check(words); err != nil {
					t.Errorf("%s: %s: %v", where, strings.Join(words, " "), err)
				}
			}
		}
	}
	// What it is to find, it finds.
	for _, wrong := range []string{
		"kubectl bowline rollback data --evit", "kubectl bowline rolback data", "kubectl bowline commit", "kubectl bowline commit a b",
		"bowline device restor disk.img", "bowline device restore --dry disk.img", "bowline device restore",
		"kubectl get volumecheckpoint --watchh", "kubectl gett pods", "kubectl patch volumecheckpont x --type merge",
		"kubectl apply -f no-such-file.yaml", "helm install bowline charts/bowline --set node.kubeletdir=/x", "helm instal x",
		"make demmo", "go test ./test/dogs", "mkfs.ext5 disk",
	} {
		if c.kinds == nil && strings.HasPrefix(wrong, "kubectl ") && !strings.HasPrefix(wrong, "kubectl bowline") {
			continue
		}
		if err := c.check(strings.Fields(wrong)); err == nil {
			t.Errorf("not found wrong: %s", wrong)
		}
	}
	t.Logf("%d commands", n)
	if n < 50 {
		t.Error("so few cannot be all")
	}
}

// kinds returns the names under which kubectl knows the kinds of the API server,
// with ours; nil if there is none here.
func kinds(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{"all": true}
	t.Run("API server", func(t *testing.T) {
		client, err := discovery.NewDiscoveryClientForConfig(apiserver.Config(t))
		if err != nil {
			t.Fatal(err)
		}
		_, lists, err := client.ServerGroupsAndResources()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lists {
			for _, r := range l.APIResources {
				for _, n := range append([]string{r.Name, r.SingularName, strings.ToLower(r.Kind)}, r.ShortNames...) {
					known[n] = true
				}
			}
		}
	})
	if len(known) == 1 {
		return nil
	}
	return known
}

func (c *checker) check(words []string) error {
	switch program := words[0]; {
	case program == "kubectl" && len(words) > 1 && words[1] == "bowline":
		return c.ours("kubectl-bowline", "kubectl bowline", words[2:])
	case program == "bowline":
		return c.ours("bowline", "bowline", words[1:])
	case program == "kubectl":
		return c.kubectl(words[1:])
	case program == "helm":
		return c.helm(words[1:])
	case program == "make":
		for _, w := range words[1:] {
			if !strings.Contains(w, "=") && !c.targets[w] {
				return fmt.Errorf("there is no target %q", w)
			}
		}
		return nil
	case program == "go":
		for _, w := range words[2:] {
			if dir, _, _ := strings.Cut(w, "/..."); strings.HasPrefix(w, "./") {
				if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
					return err
				}
			}
		}
		return nil
	case slices.Contains(others, program):
		return nil
	}
	return errors.New("an unknown program")
}

// help returns what a program says of a subcommand.
func (c *checker) help(path string, words ...string) (string, error) {
	key := path + " " + strings.Join(words, " ")
	if said, ok := c.helps[key]; ok {
		return said, nil
	}
	said, err := exec.Command(path, append(slices.Clone(words), "--help")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s", strings.TrimSpace(string(said)))
	}
	c.helps[key] = string(said)
	return string(said), nil
}

var (
	flagLine   = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([\w-]+)( \w+)?  `)
	kubectlRow = regexp.MustCompile(`(?m)^    (?:-(\w), )?--([\w-]+)=(.*):$`)
	usageLine  = regexp.MustCompile(`(?m)^Usage:\n  (.*)$`)
)

// arguments takes flags out of the words of a command line. The help lists the
// flags that there are: true stands for those that take a value.
func arguments(words []string, flags map[string]bool) (list []string, err error) {
	for i := 0; i < len(words); i++ {
		name, _, hasValue := strings.Cut(words[i], "=")
		if !strings.HasPrefix(name, "-") {
			list = append(list, words[i])
			continue
		}
		takesValue, ok := flags[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("there is no flag %s", name)
		case takesValue && !hasValue:
			if i++; i == len(words) {
				return nil, fmt.Errorf("%s takes a value", name)
			}
		}
	}
	return list, nil
}

// ours checks a command of one of our programs by its own help: flags, subcommand
// and number of arguments.
func (c *checker) ours(program, shown string, words []string) error {
	below := 1
	if len(words) > 0 && words[0] == "device" {
		below = 2
	}
	for i, w := range words {
		if strings.HasPrefix(w, "-") {
			below = min(below, i)
		}
	}
	help, err := c.help(filepath.Join(c.programs, program), words[:min(below, len(words))]...)
	if err != nil {
		return err
	}
	usage := usageLine.FindStringSubmatch(help)
	if usage == nil {
		return fmt.Errorf("its help has no usage: %s", help)
	}
	flags := map[string]bool{}
	for _, m := range flagLine.FindAllStringSubmatch(help, -1) {
		flags["--"+m[2]], flags["-"+m[1]] = m[3] != "", m[3] != ""
	}
	given, err := arguments(words, flags)
	if err != nil {
		return err
	}
	if slices.Contains(words, "--help") {
		return nil
	}
	for _, p := range strings.Fields(strings.TrimPrefix(usage[1], shown)) {
		optional := strings.HasPrefix(p, "[")
		switch {
		case p == "[flags]" || optional && len(given) == 0:
			continue
		case len(given) == 0:
			return fmt.Errorf("%s is missing, see: %s", p, usage[1])
		case !optional && p == strings.ToLower(p) && given[0] != p:
			return fmt.Errorf("there is no %q, see: %s", given[0], usage[1])
		}
		given = given[1:]
	}
	if len(given) > 0 {
		return fmt.Errorf("%q is too much, see: %s", given, usage[1])
	}
	return nil
}

// Verbs of kubectl that are followed by a kind or by kind/name, and those that have
// subcommands.
var (
	onKinds  = strings.Fields("get describe delete patch wait scale label annotate edit rollout set")
	subverbs = strings.Fields("rollout set create config")
)

// kubectl checks verbs and flags by the help of kubectl, kinds with the API server,
// and that files exist.
func (c *checker) kubectl(words []string) error {
	path := kubectl()
	if path == "" || c.kinds == nil {
		return nil
	}
	if end := slices.Index(words, "--"); end >= 0 {
		words = words[:end]
	}
	flags, err := c.kubectlFlags(path, "options")
	if err != nil {
		return err
	}
	for i := 0; i < len(words) && strings.HasPrefix(words[i], "-"); i++ { // before the verb
		if flags[words[i]] {
			words = words[i+2:]
			i = -1
		}
	}
	if len(words) == 0 {
		return errors.New("no verb")
	}
	verb := words[:1]
	if slices.Contains(subverbs, words[0]) && len(words) > 1 {
		verb = words[:2]
	}
	own, err := c.kubectlFlags(path, append(slices.Clone(verb), "--help")...)
	if err != nil {
		return err
	}
	maps.Copy(own, flags)
	given, err := arguments(words[len(verb):], own)
	if err != nil {
		return err
	}
	for i, w := range words {
		if w == "-f" || w == "--filename" || w == "--patch-file" {
			if err := c.file(words[i+1]); err != nil {
				return err
			}
		}
	}
	if !slices.Contains(onKinds, verb[0]) || len(given) == 0 {
		return nil
	}
	for kind := range strings.SplitSeq(given[0], ",") {
		kind, _, _ = strings.Cut(kind, "/")
		kind, _, _ = strings.Cut(kind, ".")
		if !c.kinds[kind] {
			return fmt.Errorf("the API server has no %q", kind)
		}
	}
	return nil
}

// kubectlFlags returns the flags that kubectl lists: true for those with a value.
func (c *checker) kubectlFlags(path string, words ...string) (map[string]bool, error) {
	key := path + " " + strings.Join(words, " ")
	said, ok := c.helps[key]
	if !ok {
		b, err := exec.Command(path, words...).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s", strings.TrimSpace(string(b)))
		}
		said = string(b)
		c.helps[key] = said
	}
	flags := map[string]bool{"--help": false}
	for _, m := range kubectlRow.FindAllStringSubmatch(said, -1) {
		value := m[3] != "true" && m[3] != "false"
		flags["--"+m[2]] = value
		if m[1] != "" {
			flags["-"+m[1]] = value
		}
	}
	return flags, nil
}

// file says why a file that a command reads does not exist: it is in the
// repository, or a block of the page has its name.
func (c *checker) file(name string) error {
	if c.files[name] {
		return nil
	}
	_, err := os.Stat(filepath.Join(root, name))
	return err
}

func (c *checker) helm(words []string) error {
	verbs := strings.Fields("install upgrade uninstall rollback package template lint")
	if len(words) < 2 || !slices.Contains(verbs, words[0]) {
		return fmt.Errorf("want one of %s and something it is about", verbs)
	}
	ours := false
	for i, w := range words {
		switch {
		case strings.HasPrefix(w, "charts/"):
			ours = true
			if _, err := os.Stat(filepath.Join(root, w, "Chart.yaml")); err != nil {
				return err
			}
		case w == "--set" && ours:
			key, _, ok := strings.Cut(words[i+1], "=")
			if !ok {
				return fmt.Errorf("--set %s is no assignment", words[i+1])
			}
			if err := hasValue(c.values, key); err != nil {
				return err
			}
		case w == "-f" || w == "--values":
			if err := c.file(words[i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasValue says why the chart has no value of that name.
func hasValue(values map[string]any, key string) error {
	var v any = values
	for part := range strings.SplitSeq(key, ".") {
		m, _ := v.(map[string]any)
		next, ok := m[part]
		if !ok {
			return fmt.Errorf("the chart has no value %s", key)
		}
		v = next
	}
	return nil
}
