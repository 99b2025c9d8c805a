package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// An event is something to tell about a checkpoint.
type event struct {
	namespace, kind, reason, action, note string
	object                                corev1.ObjectReference  // that it is about
	related                               *corev1.ObjectReference // the checkpoint, if it is about something else
	key                                   string                  // the same for the same happening
	at                                    time.Time
}

// Events writes events. What was told is known by its name, made from what
// happened and when, so another leader does not tell it again.
type Events struct {
	Client   client.Client
	Instance string // of this controller, for instance the name of its pod
	Log      *slog.Logger

	mu struct {
		sync.Mutex
		told map[string]time.Time
	}
}

// TellOfGroup writes an event about a group, unless it was written already; at is
// when it happened.
func (e *Events) TellOfGroup(ctx context.Context, now time.Time, g *v1alpha1.VolumeCheckpointGroup, kind, reason, action, note string, at metav1.Time) {
	e.tell(ctx, now, event{
		namespace: g.Namespace, kind: kind, reason: reason, action: action, note: note, key: reason, at: at.Time,
		object: corev1.ObjectReference{
			APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindVolumeCheckpointGroup,
			Namespace: g.Namespace, Name: g.Name, UID: g.UID,
		},
	})
}

// stale is the age from which on something is no news: it was told by another
// leader, whose event may have expired.
const stale = 30 * time.Minute

// tell writes the event unless it was written already. Events are a courtesy: if
// one cannot be written, that is logged.
func (e *Events) tell(ctx context.Context, now time.Time, ev event) {
	name := ev.name()
	if now.Sub(ev.at) > stale || !e.isNew(name, now) {
		return
	}
	err := e.Client.Create(ctx, &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: ev.namespace, Name: name},
		EventTime:           metav1.NewMicroTime(ev.at),
		ReportingController: "bowline.dev/controller",
		ReportingInstance:   e.Instance,
		Action:              ev.action, Reason: ev.reason, Type: ev.kind,
		Note:      limit(ev.note, 1000),
		Regarding: ev.object, Related: ev.related,
	})
	// A namespace that is being deleted takes no more.
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
		e.Log.Warn("an event was not written", "reason", ev.reason, "object", ev.object.Name, "error", err)
		e.forget(name)
	}
}

func (e *Events) isNew(name string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.told == nil {
		e.mu.told = make(map[string]time.Time)
	}
	if _, ok := e.mu.told[name]; ok {
		return false
	}
	for n, at := range e.mu.told {
		if now.Sub(at) > 2*stale {
			delete(e.mu.told, n)
		}
	}
	e.mu.told[name] = now
	return true
}

// untold says whether tell would write the event.
func (e *Events) untold(ev event, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, told := e.mu.told[ev.name()]
	return !told && now.Sub(ev.at) <= stale
}

func (e *Events) forget(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mu.told, name)
}

func (ev event) name() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s %d", ev.object.UID, ev.reason, ev.key, ev.kind, ev.at.Unix()))
	return strings.TrimRight(limit(ev.object.Name, 200), "-.") + "." + hex.EncodeToString(sum[:8])
}

func limit(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}

func referenceTo(c *v1alpha1.VolumeCheckpoint) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindVolumeCheckpoint,
		Namespace: c.Namespace, Name: c.Name, UID: c.UID,
	}
}

// about returns the event for another object of the checkpoint's namespace.
func (ev event) about(kind string, o metav1.Object) event {
	checkpoint := ev.object
	ev.related = &checkpoint
	ev.object = corev1.ObjectReference{
		APIVersion: "v1", Kind: kind, Namespace: ev.namespace, Name: o.GetName(), UID: o.GetUID(),
	}
	return ev
}

func aboutPod(c *v1alpha1.VolumeCheckpoint, p *corev1.Pod, at time.Time, kind, reason, action, note string) event {
	return event{
		namespace: c.Namespace, kind: kind, reason: reason, action: action, note: note,
		object: referenceTo(c), key: string(c.UID), at: at,
	}.about("Pod", p)
}
