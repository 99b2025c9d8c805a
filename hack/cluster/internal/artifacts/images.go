package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// baseName is the name under which Dockerfiles know the base image. It is made
// here from Debian's packages and is as small as the image of that name.
const baseName = "docker.io/library/debian:bookworm-slim"

// baseRecipe makes the base image's root file system, from where mmdebstrap finds
// Debian, updates included; the output file follows.
var baseRecipe = []string{
	"mmdebstrap", "--variant=minbase", "--quiet",
	// What the slim image of Debian leaves out, too.
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
	"--dpkgopt=path-exclude=/usr/share/info/*",
	"bookworm",
}

// An Image is a file that a container runtime imports, and the name that the
// image has then.
type Image struct {
	Name string
	File string
}

// imageFile is the archive in the directory of an image.
const imageFile = "image.tar"

func (c *Cache) baseDigest() (digest, error) {
	return digestOf(append([]string{runtime.GOARCH}, baseRecipe...))
}

// Base returns Debian's smallest system as an image.
func (c *Cache) Base(ctx context.Context) (Image, error) {
	key, err := c.baseDigest()
	if err != nil {
		return Image{}, err
	}
	dir, err := c.artifact("images", "base", key, func(dir string) error {
		c.progress("base image: installing a minimal Debian")
		root := filepath.Join(dir, "root.tar")
		defer os.Remove(root)
		if err := c.run(ctx, dir, nil, append(baseRecipe[:len(baseRecipe):len(baseRecipe)], root)...); err != nil {
			return err
		}
		dockerfile := "FROM scratch\nADD root.tar /\nCMD [\"/bin/bash\"]\n"
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
			return err
		}
		return c.build(ctx, baseName, dir, dir)
	})
	return Image{baseName, filepath.Join(dir, imageFile)}, err
}

// Pause returns the image that holds the namespaces of pods, under the given
// name.
func (c *Cache) Pause(ctx context.Context, name string) (Image, error) {
	source := filepath.Join(c.Checkout, "hack/images/pause")
	key, err := digestOf([]string{runtime.Version(), runtime.GOARCH, name}, source)
	if err != nil {
		return Image{}, err
	}
	dir, err := c.artifact("images", "pause", key, func(dir string) error {
		program := []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "pause"), "."}
		if err := c.run(ctx, source, []string{"CGO_ENABLED=0"}, program...); err != nil {
			return err
		}
		dockerfile, err := os.ReadFile(filepath.Join(source, "Dockerfile"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), dockerfile, 0o644); err != nil {
			return err
		}
		return c.build(ctx, name, dir, dir)
	})
	return Image{name, filepath.Join(dir, imageFile)}, err
}

// Postgres returns PostgreSQL as an image.
func (c *Cache) Postgres(ctx context.Context) (Image, error) {
	const name = "bowline.dev/cluster/postgres:15"
	source, key, err := c.onBase("postgres", name)
	if err != nil {
		return Image{}, err
	}
	dir, err := c.artifact("images", "postgres", key, func(dir string) error {
		c.progress("postgres image: installing PostgreSQL")
		if err := c.useBase(ctx); err != nil {
			return err
		}
		return c.build(ctx, name, source, dir)
	})
	return Image{name, filepath.Join(dir, imageFile)}, err
}

// NodeRoot returns a directory with the root file system of a machine.
func (c *Cache) NodeRoot(ctx context.Context) (string, error) {
	source, key, err := c.onBase("node")
	if err != nil {
		return "", err
	}
	return c.artifact("rootfs", "node", key, func(dir string) error {
		c.progress("node: installing its packages")
		if err := c.useBase(ctx); err != nil {
			return err
		}
		return c.buildah(ctx, source, "build", "--isolation=chroot", "--pull-never", "--output=type=local,dest="+dir, source)
	})
}

// Build builds the image name from the Dockerfile and the context directory
// into dir, which exists. The Dockerfile may build on the base image and on
// images that were built before; nothing is fetched from a registry. Arguments
// are NAME=VALUE for its ARGs; stages that are not needed with them are not built.
// Layers are kept and used again where neither the Dockerfile nor what it copies
// has changed.
func (c *Cache) Build(ctx context.Context, name, dockerfile, directory string, arguments []string, dir string) (Image, error) {
	if err := c.useBase(ctx); err != nil {
		return Image{}, err
	}
	c.progress("building the image %s", name)
	options := []string{"--file=" + dockerfile, "--layers"}
	for _, a := range arguments {
		options = append(options, "--build-arg="+a)
	}
	if err := c.build(ctx, name, directory, dir, options...); err != nil {
		return Image{}, fmt.Errorf("building the image %s: %w", name, err)
	}
	return Image{name, filepath.Join(dir, imageFile)}, nil
}

// useBase makes the base image of this checkout the one that Dockerfiles find
// under its name: another checkout may have another one, and the cache of
// buildah may have been cleaned.
func (c *Cache) useBase(ctx context.Context) error {
	base, err := c.Base(ctx)
	if err != nil {
		return err
	}
	return c.buildah(ctx, c.Dir, "pull", "--quiet", "docker-archive:"+base.File)
}

// onBase returns the source of an image that is built on the base image, and
// the digest of both.
func (c *Cache) onBase(source string, words ...string) (string, digest, error) {
	base, err := c.baseDigest()
	if err != nil {
		return "", digest{}, err
	}
	source = filepath.Join(c.Checkout, "hack/images", source)
	key, err := digestOf(append(words, base.String()), source)
	return source, key, err
}

// build builds the image name from the Dockerfile in the directory source and
// writes it to the archive in dir.
func (c *Cache) build(ctx context.Context, name, source, dir string, options ...string) error {
	args := append([]string{"build", "--isolation=chroot", "--pull-never", "--tag=" + name}, options...)
	if err := c.buildah(ctx, source, append(args, source)...); err != nil {
		return err
	}
	return c.buildah(ctx, source, "push", name, "docker-archive:"+filepath.Join(dir, imageFile)+":"+name)
}

// buildah keeps its images in the cache, apart from those that the user may
// have.
func (c *Cache) buildah(ctx context.Context, dir string, args ...string) error {
	options := []string{
		"buildah",
		"--root=" + filepath.Join(c.Dir, "buildah"),
		"--runroot=" + filepath.Join(c.Dir, "buildah-run"),
		"--storage-driver=overlay",
	}
	return c.run(ctx, dir, nil, append(options, args...)...)
}
