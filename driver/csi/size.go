package csi

import (
	"math"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Sizes of volumes, bytes.
const (
	// granularity is what sizes are rounded up to. Both the mapping and file
	// systems work in blocks of this size.
	granularity = 4096

	// defaultSize is that of a volume for which no size was asked.
	defaultSize = 1 << 30

	// The smallest volumes. Whoever asks for less gets this much: mkfs refuses
	// smaller ones, and a checkpoint needs some space of its own.
	minSize    = 16 << 20
	minSizeXFS = 300 << 20

	// maxSize leaves room for sums of sizes.
	maxSize = math.MaxInt64 / 2 / granularity * granularity
)

// smallest is the least size of a volume that is used in this way.
func smallest(a access) int64 {
	if a.fsType == "xfs" {
		return minSizeXFS
	}
	return minSize
}

// checkRange says what is wrong with a capacity range that is given.
func checkRange(r *spec.CapacityRange) error {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return invalid("capacity_range from %d to %d bytes: sizes cannot be negative", required, limit)
	case required == 0 && limit == 0:
		return invalid("capacity_range has neither required_bytes nor limit_bytes")
	case limit > 0 && limit < required:
		return status.Errorf(codes.OutOfRange, "capacity_range: limit_bytes %d are less than required_bytes %d", limit, required)
	case required > maxSize:
		return status.Errorf(codes.OutOfRange, "capacity_range: required_bytes %d are more than any volume can have (%d)", required, int64(maxSize))
	}
	return nil
}

// chooseSize returns the size of a volume that is at least least bytes: what is
// required, rounded up; preferred if no size is required.
func chooseSize(r *spec.CapacityRange, least, preferred int64) (int64, error) {
	if r == nil {
		return max(least, preferred), nil
	}
	if err := checkRange(r); err != nil {
		return 0, err
	}
	limit := r.GetLimitBytes()
	size := (r.GetRequiredBytes() + granularity - 1) / granularity * granularity
	if size == 0 {
		size = min(preferred, limit/granularity*granularity)
	}
	size = max(size, least)
	if limit > 0 && size > limit {
		return 0, status.Errorf(codes.OutOfRange,
			"capacity_range: no size from %d to %d bytes is a multiple of %d and at least %d", r.GetRequiredBytes(), limit, granularity, least)
	}
	return size, nil
}

// fits tells whether a volume of size bytes is what the range asks for.
func fits(size int64, r *spec.CapacityRange) bool {
	return size >= r.GetRequiredBytes() && (r.GetLimitBytes() == 0 || size <= r.GetLimitBytes())
}
