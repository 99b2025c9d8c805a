// Package storagee2e is Kubernetes' own tests of storage as a program, without the
// rest of its end-to-end tests. run.sh runs it.
package storagee2e

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	"k8s.io/kubernetes/test/utils/image"

	// What the framework and the tests register.
	_ "k8s.io/kubernetes/test/e2e/feature"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/e2e/storage/external"
	_ "k8s.io/kubernetes/test/utils/format"
)

var (
	images  = flag.Bool("storage.images", false, "print the names of the images that the tests use, each after that of its directory in images")
	results = flag.String("storage.results", "", "file for a line for each test that was chosen: how it ended, its name, and why")
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if *images {
		fmt.Println("agnhost", image.GetE2EImage(image.Agnhost))
		fmt.Println("busybox", image.GetE2EImage(image.BusyBox))
		fmt.Println("nginx", image.GetE2EImage(image.Nginx))
		fmt.Println("glibc-dns-testing", image.GetE2EImage(image.GlibcDnsTesting))
		return
	}
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

func TestStorage(t *testing.T) {
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	ginkgo.RunSpecs(t, "Kubernetes' tests of storage", suite, reporter)
}

// The tests that were not chosen are among those that Ginkgo calls skipped. Here
// they are not, so one sees which tests skip themselves, and why.
var _ = ginkgo.ReportAfterSuite("results", func(r ginkgo.Report) {
	if *results == "" {
		return
	}
	var lines []string
	count := map[string]int{}
	where := regexp.MustCompile(`(?s)\n.*`)
	for _, s := range r.SpecReports {
		if s.LeafNodeType != types.NodeTypeIt || s.State.Is(types.SpecStateSkipped) && s.Failure.Message == "" {
			continue
		}
		count[s.State.String()]++
		line := fmt.Sprintf("%s\t%s\t%s", s.State, strings.TrimPrefix(s.FullText(), "External Storage "), where.ReplaceAllString(s.Failure.Message, ""))
		lines = append(lines, strings.TrimRight(line, "\t"))
	}
	slices.Sort(lines)
	var totals []string
	for state, n := range count {
		totals = append(totals, fmt.Sprintf("%d %s", n, state))
	}
	slices.Sort(totals)
	text := strings.Join(lines, "\n") + "\n" + strings.Join(totals, ", ") + "\n"
	if err := os.WriteFile(*results, []byte(text), 0o644); err != nil {
		ginkgo.Fail(err.Error())
	}
})
