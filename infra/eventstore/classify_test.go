package eventstore

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An error that leaves open whether the store did what it was asked is ErrUnavailable, which says so. A server that goes down amid a call ends it
// with a reset of HTTP/2, and gRPC calls most of those "internal".
func TestErrorsThatLeaveTheOutcomeOpen(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		io.EOF,
		errors.New("connection reset"),
		status.Error(codes.Unavailable, "transport is closing"),
		status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"),
		status.Error(codes.DeadlineExceeded, ""),
		status.Error(codes.Canceled, ""),
		status.Error(codes.Unknown, ""),
		status.Error(codes.Aborted, ""),
	} {
		require.ErrorIs(t, classify(context.Background(), err), ErrUnavailable, "%v", err)
	}
	for _, err := range []error{
		status.Error(codes.InvalidArgument, "Maximum Append Size of 1048576 Exceeded."),
		status.Error(codes.PermissionDenied, ""),
		status.Error(codes.Unauthenticated, ""),
	} {
		require.NotErrorIs(t, classify(context.Background(), err), ErrUnavailable, "%v", err)
	}
}
