package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// vckpt returns a checkpoint that was created at the given minute.
func vckpt(name, claim string, minute int, phase v1alpha1.Phase) v1alpha1.VolumeCheckpoint {
	c := v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	c.CreationTimestamp.Time = time.Date(2030, 1, 1, 0, minute, 0, 0, time.UTC)
	c.Spec.PersistentVolumeClaimName = claim
	c.Status.Phase = phase
	if phase != v1alpha1.PhasePending {
		c.Status.Step = v1alpha1.StepSwitch
	}
	return c
}

func TestChoose(t *testing.T) {
	list := []v1alpha1.VolumeCheckpoint{
		vckpt("first", "data", 1, v1alpha1.PhaseCommitted),
		vckpt("second", "data", 2, v1alpha1.PhaseRolledBack),
		vckpt("third", "data", 3, v1alpha1.PhaseCheckpointed),
		vckpt("queued", "data", 4, v1alpha1.PhasePending),
		vckpt("old", "logs", 1, v1alpha1.PhaseCommitted),
		vckpt("new", "logs", 2, v1alpha1.PhaseFailed),
		vckpt("wal", "data", 0, v1alpha1.PhaseCommitted), // named as a claim
		vckpt("wal-1", "wal", 1, v1alpha1.PhaseCheckpointed),
		vckpt("a", "twice", 1, v1alpha1.PhasePending),
		vckpt("b", "twice", 2, v1alpha1.PhasePending),
		vckpt("same", "same", 1, v1alpha1.PhaseCheckpointed),
	}
	for _, test := range []struct {
		arg      string
		endedToo bool
		want     string
		code     int
	}{
		{"data", false, "third", exitOK},
		{"data", true, "third", exitOK},
		{"third", false, "third", exitOK},
		{"vckpt/first", true, "first", exitOK},
		{"first", false, "", exitOK},
		{"first", true, "first", exitOK},
		{"logs", false, "", exitOK},
		{"logs", true, "new", exitOK},
		{"wal", false, "", exitUsage},
		{"pvc/wal", false, "wal-1", exitOK},
		{"vckpt/wal", true, "wal", exitOK},
		{"volumecheckpoint.bowline.dev/wal", true, "wal", exitOK},
		{"twice", false, "", exitState},
		{"a", false, "a", exitOK},
		{"same", false, "same", exitOK},
		{"nothing", true, "", exitOK},
		{"pod/x", true, "", exitUsage},
	} {
		target, err := parseTarget(test.arg)
		var got *v1alpha1.VolumeCheckpoint
		if err == nil {
			got, err = choose(list, target, test.endedToo)
		}
		name := ""
		if got != nil {
			name = got.Name
		}
		if name != test.want || exitCode(err) != test.code {
			t.Errorf("%s, ended too: %v: %q and %v, want %q and exit code %d", test.arg, test.endedToo, name, err, test.want, test.code)
		}
	}
}

func TestExitCode(t *testing.T) {
	resource := schema.GroupResource{Group: "bowline.dev", Resource: "volumecheckpoints"}
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("any"), exitFailed},
		{fmt.Errorf("reading: %w", usagef("wrong")), exitUsage},
		{fmt.Errorf("reading: %w", statef("not now")), exitState},
		{notFoundError{errors.New("none")}, exitNotFound},
		{fmt.Errorf("reading: %w", apierrors.NewNotFound(resource, "x")), exitNotFound},
		{timeoutError{errors.New("late")}, exitTimeout},
		{apierrors.NewForbidden(resource, "x", errors.New("no")), exitFailed},
		{apierrors.NewInvalid(schema.GroupKind{}, "x", nil), exitState},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("exit code %d for %v, want %d", got, test.err, test.want)
		}
	}
}

func TestPolicy(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string // "" for a mistake
	}{
		{nil, "{FailWrites}"},
		{[]string{"--out-of-space", "commit", "--pod-policy", "evict", "--minimum-free", "2Gi"}, "{Commit evict 2Gi}"},
		{[]string{"--deadline", "90m", "--deadline-action", "roll-back"}, "{FailWrites 1h30m0s RollBack}"},
		{[]string{"--verify", "sts/db", "--verify-timeout", "5m"}, "{FailWrites StatefulSet db 5m0s}"},
		{[]string{"--verify", "deployment/web"}, "{FailWrites Deployment web}"},
		{[]string{"--out-of-space", "panic"}, ""},
		{[]string{"--minimum-free", "-1Gi"}, ""},
		{[]string{"--minimum-free", "much"}, ""},
		{[]string{"--deadline", "1h"}, ""},
		{[]string{"--deadline-action", "commit"}, ""},
		{[]string{"--deadline", "1h", "--deadline-action", "explode"}, ""},
		{[]string{"--deadline", "-1h", "--deadline-action", "commit"}, ""},
		{[]string{"--verify", "db"}, ""},
		{[]string{"--verify", "daemonset/db"}, ""},
		{[]string{"--verify", "sts/"}, ""},
		{[]string{"--verify-timeout", "5m"}, ""},
	} {
		o := &checkpointOptions{}
		cmd := &cobra.Command{}
		o.addFlags(cmd)
		if err := cmd.ParseFlags(test.args); err != nil {
			t.Fatal(err)
		}
		p, err := o.policy()
		got := ""
		if err == nil {
			got = "{" + string(p.OutOfSpacePolicy)
			if p.Rollback != nil {
				got += " evict"
			}
			if p.MinimumFree != nil {
				got += " " + p.MinimumFree.String()
			}
			if d := p.Deadline; d != nil {
				got += fmt.Sprintf(" %v %s", d.After.Duration, d.Action)
			}
			if v := p.Verify; v != nil {
				got += fmt.Sprintf(" %s %s", v.WorkloadRef.Kind, v.WorkloadRef.Name)
				if v.Timeout != nil {
					got += " " + v.Timeout.Duration.String()
				}
			}
			got += "}"
		}
		if got != test.want || test.want == "" && exitCode(err) != exitUsage {
			t.Errorf("%q: %s and %v, want %s", test.args, got, err, test.want)
		}
	}
}

func TestArguments(t *testing.T) {
	if got := arguments([]string{"/usr/bin/kubectl-bowline", "list"}); len(got) != 1 || got[0] != "list" {
		t.Errorf("arguments %q", got)
	}
	if got := arguments([]string{"/usr/bin/" + completer, "status", ""}); len(got) != 3 || got[0] != cobra.ShellCompRequestCmd {
		t.Errorf("arguments %q", got)
	}
	if got := arguments(nil); len(got) != 0 {
		t.Errorf("arguments %q", got)
	}
}

// TestWarnings: what is wrong with a volume is shown in the list and told.
func TestWarnings(t *testing.T) {
	condition := func(conditionType string, status metav1.ConditionStatus) metav1.Condition {
		return metav1.Condition{Type: conditionType, Status: status, Message: conditionType + " is " + string(status)}
	}
	for _, test := range []struct {
		failing, low  metav1.ConditionStatus
		column, story string
	}{
		{metav1.ConditionFalse, metav1.ConditionFalse, "Checkpointed", "Checkpointed is True"},
		{metav1.ConditionFalse, metav1.ConditionTrue, "Checkpointed,SpaceLow", "SpaceLow is True"},
		{metav1.ConditionTrue, metav1.ConditionFalse, "Checkpointed,DeviceFailing", "DeviceFailing is True"},
		{metav1.ConditionTrue, metav1.ConditionTrue, "Checkpointed,DeviceFailing,SpaceLow", "DeviceFailing is True"},
	} {
		c := vckpt("before", "data", 1, v1alpha1.PhaseCheckpointed)
		c.Status.Conditions = []metav1.Condition{condition(v1alpha1.ConditionCheckpointed, metav1.ConditionTrue),
			condition(v1alpha1.ConditionSpaceLow, test.low), condition(v1alpha1.ConditionDeviceFailing, test.failing)}
		if column, told := phaseColumn(&c), story(&c); column != test.column || told != test.story {
			t.Errorf("failing %s, low %s: %q and %q, want %q and %q", test.failing, test.low, column, told, test.column, test.story)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 20: "1.0Mi", 10 << 30: "10Gi", 1536 << 20: "1.5Gi", 1<<63 - 1: "8.0Ei"} {
		if got := bytes(n); got != want {
			t.Errorf("%d bytes are %s, want %s", n, got, want)
		}
	}
}
