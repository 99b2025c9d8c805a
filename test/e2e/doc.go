// Package e2e tests the driver as its users meet it: installed with Helm into a
// real Kubernetes, through claims, pods and VolumeCheckpoints. Like the tests of
// the cluster itself these need root and the build tag cluster:
//
//	go test -tags cluster -count=1 -timeout 30m -parallel 4 ./test/e2e
//
// One cluster of two nodes serves all tests; it begins and ends with the run.
// Tests that call t.Parallel leave the driver and the nodes alone and run beside
// each other; those that do not restart, upgrade or kill something that all share,
// and run one by one before them. Each has a namespace of its own.
package e2e
