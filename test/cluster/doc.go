// Package cluster tests hack/cluster as its users see it: by its command line,
// with a real Kubernetes. The tests need root, and some minutes the first time
// when everything is built; so they are run only with the build tag cluster:
//
//	go test -tags cluster -count=1 -timeout 45m ./test/cluster
//
// They have clusters of their own and leave that of the developer alone.
package cluster
