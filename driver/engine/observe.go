package engine

import (
	"context"
	"log/slog"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// LogCalls are the options of a gRPC server that logs every call: those that
// change something, and failures, as information, the others for debugging.
func LogCalls(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			began := time.Now()
			resp, err := handle(ctx, req)
			logCall(ctx, log, info.FullMethod, req, began, err)
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			began := time.Now()
			seen := &requestStream{ServerStream: stream}
			err := handle(srv, seen)
			logCall(stream.Context(), log, info.FullMethod, seen.request, began, err)
			return err
		}),
	}
}

// requestStream remembers the request of a call that answers with a stream.
type requestStream struct {
	grpc.ServerStream
	request any
}

func (s *requestStream) RecvMsg(m any) error {
	s.request = m
	return s.ServerStream.RecvMsg(m)
}

func logCall(ctx context.Context, log *slog.Logger, method string, req any, began time.Time, err error) {
	level := slog.LevelInfo
	switch method {
	case enginepb.Engine_Get_FullMethodName, enginepb.Engine_List_FullMethodName, enginepb.Engine_MarkFree_FullMethodName:
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{slog.String("request", method)}
	if named, ok := req.(interface{ GetName() string }); ok {
		attrs = append(attrs, slog.String("volume", named.GetName()))
	}
	attrs = append(attrs, slog.Duration("duration", time.Since(began)), slog.String("code", status.Code(err).String()))
	if err != nil {
		level = slog.LevelInfo
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	log.LogAttrs(ctx, level, "call", attrs...)
}
