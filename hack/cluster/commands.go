package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bowline-csi/bowline/hack/cluster/internal/artifacts"
	"github.com/bowline-csi/bowline/hack/cluster/internal/cluster"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes on this machine, without a registry",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newUpCommand(),
		simple("down", "End the cluster and remove everything of it", 0, func(_ context.Context, c *cluster.Cluster, _ []string) error {
			return c.Down()
		}),
		simple("status", "Show what runs; fails if something does not", 0, func(ctx context.Context, c *cluster.Cluster, _ []string) error {
			return c.Status(ctx, os.Stdout)
		}),
		simple("kubeconfig", "Print the name of the kubeconfig file", 0, func(_ context.Context, c *cluster.Cluster, _ []string) error {
			fmt.Println(c.Kubeconfig())
			return nil
		}),
		simple("kill-node NODE", "Cut the power of a node; its disk stays", 1, func(_ context.Context, c *cluster.Cluster, args []string) error {
			return c.KillNode(args[0])
		}),
		simple("start-node NODE", "Start a killed node", 1, func(ctx context.Context, c *cluster.Cluster, args []string) error {
			return c.StartNode(ctx, args[0])
		}),
		simple("load-image ARCHIVE", "Import a Docker or OCI archive on all nodes", 1, func(ctx context.Context, c *cluster.Cluster, args []string) error {
			return c.LoadImage(ctx, args[0])
		}),
		simple("load-postgres", "Import the image of PostgreSQL on all nodes and print its name", 0, func(ctx context.Context, c *cluster.Cluster, _ []string) error {
			name, err := c.LoadPostgres(ctx)
			if err == nil {
				fmt.Println(name)
			}
			return err
		}),
		newBuildImageCommand(),
		newLogsCommand(),
		tool("kubectl", "kubectl", artifacts.Kubernetes),
		tool("helm", "helm", artifacts.Helm),
		newExecCommand(),
		newProgramsCommand(),
	)
	return root
}

// open returns the cluster of the checkout that the working directory is in.
func open() (*cluster.Cluster, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; ; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, "hack/cluster/components"))
		if err == nil {
			// What is said is no output: kubectl's may go through a pipe.
			return cluster.New(dir, os.Stderr)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if dir == "/" {
			return nil, errors.New("call this in a checkout of the project")
		}
	}
}

// simple is a command with that many arguments and no flags.
func simple(use, short string, arguments int, run func(context.Context, *cluster.Cluster, []string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(arguments),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			return run(cmd.Context(), c, args)
		},
	}
}

func newUpCommand() *cobra.Command {
	var nodes int
	cmd := simple("up", "Start a cluster; the first time this builds it", 0, func(ctx context.Context, c *cluster.Cluster, _ []string) error {
		return c.Up(ctx, nodes)
	})
	cmd.Flags().IntVar(&nodes, "nodes", 1, "number of nodes")
	return cmd
}

func newBuildImageCommand() *cobra.Command {
	var name, dockerfile string
	var arguments []string
	cmd := simple("build-image --tag NAME CONTEXT", "Build a Dockerfile and import the image on all nodes", 1,
		func(ctx context.Context, c *cluster.Cluster, args []string) error {
			directory, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if dockerfile == "" {
				dockerfile = filepath.Join(directory, "Dockerfile")
			}
			if dockerfile, err = filepath.Abs(dockerfile); err != nil {
				return err
			}
			return c.BuildImage(ctx, name, dockerfile, directory, arguments)
		})
	cmd.Flags().StringVarP(&name, "tag", "t", "", "name of the image")
	cmd.Flags().StringVarP(&dockerfile, "file", "f", "", "the Dockerfile, if it is not CONTEXT/Dockerfile")
	cmd.Flags().StringArrayVar(&arguments, "build-arg", nil, "NAME=VALUE for an ARG of the Dockerfile")
	if err := cmd.MarkFlagRequired("tag"); err != nil {
		panic(err) // there is no such flag: a mistake in the line above
	}
	return cmd
}

func newLogsCommand() *cobra.Command {
	cmd := simple("logs [MACHINE [SERVICE]]", "Print the logs of services; without arguments their file names", 0,
		func(_ context.Context, c *cluster.Cluster, args []string) error {
			args = append(args, "", "")
			files, err := c.LogFiles(args[0], args[1])
			if err != nil {
				return err
			}
			if args[0] == "" {
				fmt.Println(strings.Join(files, "\n"))
				return nil
			}
			for _, name := range files {
				b, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				if len(files) > 1 {
					fmt.Printf("==> %s <==\n", name)
				}
				os.Stdout.Write(b)
			}
			return nil
		})
	cmd.Args = cobra.MaximumNArgs(2)
	return cmd
}

func newExecCommand() *cobra.Command {
	cmd := simple("exec MACHINE COMMAND...", "Run a command in a machine of the cluster", 0,
		func(ctx context.Context, c *cluster.Cluster, args []string) error {
			inside, err := c.Exec(ctx, args[0], args[1:]...)
			if err != nil {
				return err
			}
			return attached(inside)
		})
	cmd.Args = cobra.MinimumNArgs(2)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// tool is a command that passes all of its arguments to a program of module,
// with the cluster's kubeconfig.
func tool(name, program string, module artifacts.Module) *cobra.Command {
	cmd := simple(name+" ...", "Run "+program+" for this cluster", 0, func(ctx context.Context, c *cluster.Cluster, args []string) error {
		dir, err := c.Programs(ctx, module)
		if err != nil {
			return err
		}
		run := exec.CommandContext(ctx, filepath.Join(dir, program), args...)
		run.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
		return attached(run)
	})
	cmd.Args = cobra.ArbitraryArgs
	cmd.DisableFlagParsing = true
	return cmd
}

func newProgramsCommand() *cobra.Command {
	var cached bool
	cmd := simple("programs", "Build etcd, the API server and kubectl among others, and print their directory", 0,
		func(ctx context.Context, c *cluster.Cluster, _ []string) error {
			find := c.Programs
			if cached {
				find = c.Built
			}
			dir, err := find(ctx, artifacts.Kubernetes)
			if err == nil {
				fmt.Println(dir)
			}
			return err
		})
	cmd.Flags().BoolVar(&cached, "cached", false, "fail rather than build them")
	return cmd
}

// attached runs a command on this process's terminal.
func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
