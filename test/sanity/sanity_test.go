package sanity_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// variants are the kinds of volumes that the suite is run with.
var variants = map[string]struct {
	fsType string
	block  bool
	size   int64
}{
	"ext4":  {fsType: "ext4", size: 32 << 20},
	"xfs":   {fsType: "xfs", size: 320 << 20},
	"block": {block: true, size: 32 << 20},
}

// notClaimed are the reasons for which specs may be skipped: all are capabilities
// that the driver does not claim, or alternatives to what it does.
var notClaimed = []string{
	"ControllerExpandVolume not supported", // the node expands volumes
	"ControllerGetVolumeHealth not supported",
	"ControllerListVolumeHealth not supported",
	"ControllerModifyVolume not supported",
	"Modify Volume not supported",
	"Modify volume not supported",
	"Controller Publish, UnpublishVolume not supported", // nothing is attached to a node
	"ControllerPublishVolume not supported",
	"ControllerUnpublishVolume not supported",
	"Snapshot not supported",
	"CreateSnapshot not supported",
	"DeleteSnapshot not supported",
	"GetSnapshot not supported",
	"ListSnapshots not supported",
	"GroupControllerService not supported",
	"VolumeGroupSnapshots not supported",
}

// variantEnv tells a child of this test what to run: the framework of the suite
// can do so only once in the life of a process.
const variantEnv = "BOWLINE_SANITY_VARIANT"

func TestSanity(t *testing.T) {
	if v := os.Getenv(variantEnv); v != "" {
		runSuite(t, v)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices and mounts")
	}
	for name := range variants {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestSanity$", "-test.count=1", "-test.v")
			cmd.Env = append(os.Environ(), variantEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
				return
			}
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "Ran ") {
					t.Log(line)
				}
			}
		})
	}
}

func runSuite(t *testing.T, variant string) {
	v, n := variants[variant], startNode(t)
	config := sanity.NewTestConfig()
	config.Address = "unix:" + n.socket
	config.TargetPath = filepath.Join(n.dir, "target")
	config.StagingPath = filepath.Join(n.dir, "staging")
	config.TestVolumeSize = v.size
	config.TestVolumeExpandSize = 2 * v.size
	if v.fsType == "ext4" && !capable(unix.CAP_SYS_RESOURCE) {
		t.Log("growing a mounted ext4 needs the capability CAP_SYS_RESOURCE, so volumes are expanded to the size that they have")
		config.TestVolumeExpandSize = v.size
	}
	if v.block {
		config.TestVolumeAccessType = "block"
	}
	config.DialOptions = []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(ask(v.fsType)),
	}
	suite := sanity.GinkgoTest(&config)
	ran := 0
	ginkgo.ReportAfterSuite("skips", func(report ginkgo.Report) {
		for _, r := range report.SpecReports {
			switch {
			case r.State == types.SpecStatePassed:
				ran++
			case r.State == types.SpecStateSkipped && !slices.Contains(notClaimed, r.FailureMessage()):
				t.Errorf("skipped for no good reason: %s: %s", r.FullText(), r.FailureMessage())
			}
		}
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suiteConfig, reporter := ginkgo.GinkgoConfiguration()
	reporter.NoColor = true
	ginkgo.RunSpecs(t, "CSI sanity, "+variant, suiteConfig, reporter)
	suite.Finalize()
	if ran < 40 {
		t.Errorf("only %d specs ran", ran)
	}
}

// capable tells whether this process has a capability.
func capable(number uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[number/32].Effective&(1<<(number%32)) != 0
}

// ask makes all requests be about volumes with this file system, which the suite
// leaves open.
func ask(fsType string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var caps []*spec.VolumeCapability
		switch r := req.(type) {
		case interface{ GetVolumeCapability() *spec.VolumeCapability }:
			caps = append(caps, r.GetVolumeCapability())
		case interface {
			GetVolumeCapabilities() []*spec.VolumeCapability
		}:
			caps = r.GetVolumeCapabilities()
		}
		for _, c := range caps {
			if m := c.GetMount(); m != nil {
				m.FsType = fsType
			}
		}
		return invoke(ctx, method, req, reply, conn, opts...)
	}
}
