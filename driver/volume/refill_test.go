package volume

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
)

// askedEngine counts how often it is asked for a volume. It has none.
type askedEngine struct {
	enginepb.EngineClient
	asked int
}

func (e *askedEngine) Get(context.Context, *enginepb.GetRequest, ...grpc.CallOption) (*enginepb.Volume, error) {
	e.asked++
	return nil, status.Error(codes.NotFound, "not attached")
}

// TestTellFreeAlone: nothing is reported while another operation is under way, which
// may end a checkpoint and begin the next one.
func TestTellFreeAlone(t *testing.T) {
	e := &askedEngine{}
	m := &Manager{ctx: t.Context(), engine: e, slots: map[string]*slot{}, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	s, err := m.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.tellFree("a"); !errors.Is(err, ErrBusy) || e.asked != 0 {
		t.Errorf("during another operation: %v, asked %d times", err, e.asked)
	}
	s.leave()
	if _, err := m.tellFree("a"); !errors.Is(err, ErrBusy) || e.asked != 1 {
		t.Errorf("%v, asked %d times", err, e.asked)
	}
	if s, err = m.enter(t.Context(), "a"); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	s.leave()
}
