package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// defaultTimeout is how long --wait waits.
const defaultTimeout = 10 * time.Minute

// waiting are the flags of commands that wait.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func (w *waiting) addFlags(cmd *cobra.Command, until string) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait until "+until)
	cmd.Flags().DurationVar(&w.timeout, "timeout", defaultTimeout, "how long to wait at most; 0 for ever")
}

// context returns a context that ends with the time that may be waited.
func (w *waiting) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, w.timeout)
}

// follow calls see with the checkpoint key as it is, and each time that it
// changes, until see says that it is done or fails. If the context ends before
// that for lack of time, the error is a timeoutError that says what it was like.
func (s *session) follow(ctx context.Context, key client.ObjectKey, see func(*v1alpha1.VolumeCheckpoint) (done bool, err error)) (*v1alpha1.VolumeCheckpoint, error) {
	var last *v1alpha1.VolumeCheckpoint
	for {
		c, done, err := s.followOnce(ctx, key, see)
		if c != nil {
			last = c
		}
		switch {
		case done || err != nil && ctx.Err() == nil && !(last != nil && unreachable(err)):
			return last, err
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return last, timeoutError{fmt.Errorf("not done in time: %s; it goes on, 'kubectl bowline status vckpt/%s --watch' shows it", describeWait(last), key.Name)}
		case ctx.Err() != nil:
			return last, ctx.Err()
		}
		select { // the watch has ended, as they do
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// unreachable tells whether err is that the API server did not answer: it may be
// on its way up again, and what is waited for goes on without it.
func unreachable(err error) bool {
	var failed *url.Error
	return errors.As(err, &failed)
}

func describeWait(c *v1alpha1.VolumeCheckpoint) string {
	if c == nil {
		return "the API server did not answer"
	}
	return fmt.Sprintf("checkpoint %q is %s: %s", c.Name, phase(c), strings.TrimSuffix(story(c), "."))
}

// followOnce is follow until a watch ends.
func (s *session) followOnce(ctx context.Context, key client.ObjectKey, see func(*v1alpha1.VolumeCheckpoint) (bool, error)) (*v1alpha1.VolumeCheckpoint, bool, error) {
	var list v1alpha1.VolumeCheckpointList
	only := []client.ListOption{client.InNamespace(key.Namespace), client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", key.Name)}}
	if err := s.List(ctx, &list, only...); err != nil {
		return nil, false, fmt.Errorf("reading checkpoint %s: %w", key, err)
	}
	if len(list.Items) == 0 {
		return nil, false, deleted(key)
	}
	c := &list.Items[0]
	if done, err := see(c); done || err != nil {
		return c, done, err
	}
	since := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}}
	w, err := s.Watch(ctx, &v1alpha1.VolumeCheckpointList{}, append(only, since)...)
	if err != nil {
		return c, false, fmt.Errorf("watching checkpoint %s: %w", key, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return c, false, nil
		case event, ok := <-w.ResultChan():
			if !ok {
				return c, false, nil
			}
			now, isCheckpoint := event.Object.(*v1alpha1.VolumeCheckpoint)
			switch {
			case event.Type == watch.Error:
				if err := apierrors.FromObject(event.Object); !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
					return c, false, fmt.Errorf("watching checkpoint %s: %w", key, err)
				}
				return c, false, nil
			case event.Type == watch.Deleted:
				return c, false, deleted(key)
			case !isCheckpoint:
				continue
			}
			c = now
			if done, err := see(c); done || err != nil {
				return c, done, err
			}
		}
	}
}

func deleted(key client.ObjectKey) error {
	return statef("checkpoint %q of namespace %q was deleted; an open one is committed by that", key.Name, key.Namespace)
}
