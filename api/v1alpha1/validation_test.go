package v1alpha1_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/test/apiserver"
)

const (
	full = `
persistentVolumeClaimName: data
minimumFree: 1Gi
rollback: {podPolicy: Evict}
deadline: {after: 1h30m, action: RollBack}
verify: {workloadRef: {kind: StatefulSet, name: db}}
`
	tooLate = "it has already been decided how this checkpoint ends"
)

// Pairs of specs: the second replaces the first. An empty second one means that
// the first is only created. The error is part of what a user is told, "" if it
// is to be accepted.
func TestCheckpointValidation(t *testing.T) {
	for name, test := range map[string]struct {
		before, status, after string
		want                  string
	}{
		"shortest":               {before: "persistentVolumeClaimName: data"},
		"all fields":             {before: full},
		"born committed":         {before: "{persistentVolumeClaimName: data, desiredState: Committed}"},
		"no claim":               {before: "desiredState: Checkpointed", want: "spec.persistentVolumeClaimName: Required value"},
		"empty claim":            {before: "persistentVolumeClaimName: ''", want: "should be at least 1 chars long"},
		"unknown state":          {before: "{persistentVolumeClaimName: data, desiredState: Rollback}", want: `supported values: "Checkpointed", "Committed", "RolledBack"`},
		"minimum a number":       {before: "{persistentVolumeClaimName: data, minimumFree: 1073741824}"},
		"minimum zero":           {before: "{persistentVolumeClaimName: data, minimumFree: 0}", want: "minimumFree must be a quantity above zero such as 512Mi or 2Gi"},
		"minimum negative":       {before: "{persistentVolumeClaimName: data, minimumFree: -1Gi}", want: "minimumFree must be a quantity above zero"},
		"minimum no quantity":    {before: "{persistentVolumeClaimName: data, minimumFree: 2 GB}", want: "spec.minimumFree"},
		"deadline without time":  {before: "{persistentVolumeClaimName: data, deadline: {action: Commit}}", want: "spec.deadline.after: Required value"},
		"deadline without doing": {before: "{persistentVolumeClaimName: data, deadline: {after: 1h}}", want: "spec.deadline.action: Required value"},
		"deadline no duration":   {before: "{persistentVolumeClaimName: data, deadline: {after: 3 days, action: Commit}}", want: "must be a duration above zero and up to 8784h (a year), such as 90s, 30m or 24h"},
		"deadline zero":          {before: "{persistentVolumeClaimName: data, deadline: {after: 0s, action: Commit}}", want: "must be a duration above zero"},
		"deadline too far":       {before: "{persistentVolumeClaimName: data, deadline: {after: 9000h, action: Commit}}", want: "must be a duration above zero and up to 8784h"},
		"deadline in fractions":  {before: "{persistentVolumeClaimName: data, deadline: {after: 1.5h, action: Commit}}"},
		"verify another kind":    {before: "{persistentVolumeClaimName: data, verify: {workloadRef: {kind: DaemonSet, name: db}}}", want: `supported values: "Deployment", "StatefulSet"`},
		"verify no duration":     {before: "{persistentVolumeClaimName: data, verify: {workloadRef: {kind: StatefulSet, name: db}, timeout: soon}}", want: "must be a duration above zero"},
		"unknown policy":         {before: "{persistentVolumeClaimName: data, outOfSpacePolicy: Ignore}", want: `supported values: "FailWrites", "Commit"`},

		"commit":              {before: full, after: full + "desiredState: Committed"},
		"roll back":           {before: full, after: full + "desiredState: RolledBack"},
		"no change":           {before: full, after: full},
		"commit undone":       {before: full + "desiredState: Committed", after: full, want: "desiredState is final once it is Committed or RolledBack"},
		"commit turned":       {before: full + "desiredState: Committed", after: full + "desiredState: RolledBack", want: "desiredState is final"},
		"rollback turned":     {before: full + "desiredState: RolledBack", after: full + "desiredState: Committed", want: "desiredState is final"},
		"another claim":       {before: full, after: strings.Replace(full, "data", "logs", 1), want: "persistentVolumeClaimName cannot be changed; create another VolumeCheckpoint for another claim"},
		"another space":       {before: full, after: full + "outOfSpacePolicy: Commit", want: "outOfSpacePolicy cannot be changed; commit this checkpoint and create another"},
		"another minimum":     {before: full, after: strings.Replace(full, "1Gi", "2Gi", 1), want: "minimumFree cannot be changed"},
		"another pod policy":  {before: full, after: strings.Replace(full, "Evict", "Wait", 1), want: "rollback cannot be changed"},
		"another deadline":    {before: full, after: strings.Replace(full, "1h30m", "2h", 1), want: "deadline cannot be changed"},
		"another workload":    {before: full, after: strings.Replace(full, "name: db", "name: web", 1), want: "verify cannot be changed"},
		"deadline taken away": {before: full, after: "persistentVolumeClaimName: data", want: "deadline cannot be changed"},
		"deadline added":      {before: "persistentVolumeClaimName: data", after: full, want: "deadline cannot be changed"},

		"decided, no change":    {before: full, status: "Committed", after: full},
		"decided, the same":     {before: full, status: "Committed", after: full + "desiredState: Committed"},
		"decided, the opposite": {before: full, status: "RolledBack", after: full + "desiredState: Committed", want: tooLate},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			try(t, v1alpha1.KindVolumeCheckpoint, test.before, test.status, test.after, test.want)
		})
	}
}

func TestGroupValidation(t *testing.T) {
	const group = "selector: {matchLabels: {app: db}}\n"
	for name, test := range map[string]struct {
		before, status, after string
		want                  string
	}{
		"labels":                {before: group},
		"expression":            {before: "selector: {matchExpressions: [{key: app, operator: Exists}]}"},
		"no selector":           {before: "desiredState: Checkpointed", want: "spec.selector: Required value"},
		"everything":            {before: "selector: {}", want: "selector must name at least one label"},
		"everything, spelled":   {before: "selector: {matchLabels: {}}", want: "selector must name at least one label"},
		"roll back":             {before: group, after: group + "desiredState: RolledBack"},
		"rollback turned":       {before: group + "desiredState: RolledBack", after: group, want: "desiredState is final"},
		"other claims":          {before: group, after: "selector: {matchLabels: {app: web}}", want: "selector cannot be changed"},
		"another policy":        {before: group, after: group + "outOfSpacePolicy: Commit", want: "outOfSpacePolicy cannot be changed"},
		"decided, the opposite": {before: group, status: "Committed", after: group + "desiredState: RolledBack", want: "it has already been decided how this group ends"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			try(t, v1alpha1.KindVolumeCheckpointGroup, test.before, test.status, test.after, test.want)
		})
	}
}

// try creates an object with the spec before, gives it a decision if decided is
// one, and replaces the spec with after.
func try(t *testing.T, kind, before, decided, after, want string) {
	c, err := client.New(apiserver.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{Object: map[string]any{"spec": fields(t, before)}}
	o.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(kind))
	o.SetNamespace("default")
	o.SetGenerateName("validation-")
	err = c.Create(t.Context(), o)
	if after == "" || err != nil {
		check(t, err, want)
		return
	}
	if decided != "" {
		o.Object["status"] = map[string]any{"decision": map[string]any{
			"desiredState": decided, "reason": "Deadline", "time": "2026-01-01T00:00:00Z",
		}}
		if err := c.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	o.Object["spec"] = fields(t, after)
	check(t, c.Update(t.Context(), o), want)
}

func fields(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted; want an error with %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("error is %q; want one with %q", err, want)
	}
}
