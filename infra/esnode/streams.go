package esnode

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxAppendBytes is EventStoreDB's default limit (MaxAppendSize) for the events of one append, by sizeOnDisk.
const maxAppendBytes = 1 << 20

// sizeOnDisk counts an event as EventStoreDB does (Event.SizeOnDisk): its data, its metadata and its type's name in UTF-16.
func sizeOnDisk(m *streams.AppendReq_ProposedMessage) int {
	return len(m.GetData()) + len(m.GetCustomMetadata()) + 2*len(m.GetMetadata()[keyType])
}

// streamsServer is the protocol's Streams service over the store.
type streamsServer struct {
	streams.UnimplementedStreamsServer
	store  *store
	writer *writer
	now    func() time.Time
}

// Append writes the events of one call, all or none.
func (s *streamsServer) Append(call streams.Streams_AppendServer) error {
	request, err := call.Recv()
	if err != nil {
		return err
	}
	options := request.GetOptions()
	if options == nil {
		return status.Error(codes.InvalidArgument, "an append begins with its options")
	}
	stream, err := streamName(options.GetStreamIdentifier())
	if err != nil {
		return err
	}
	one := &write{stream: stream, kind: writeAppend, expected: expectedOfAppend(options)}
	bytes := 0
	for {
		request, err := call.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		message := request.GetProposedMessage()
		if message == nil {
			return status.Error(codes.InvalidArgument, "an append's options are followed by events only")
		}
		// A call that is too large is read to its end all the same: the client looks at the answer only after it sent everything.
		bytes += sizeOnDisk(message)
		if bytes > maxAppendBytes {
			one.events = nil
			continue
		}
		event, err := proposedOf(message)
		if err != nil {
			return err
		}
		one.events = append(one.events, event)
	}
	if bytes > maxAppendBytes {
		call.SetTrailer(metadata.Pairs("exception", "maximum-append-size-exceeded", "maximum-append-size", strconv.Itoa(maxAppendBytes)))
		return status.Errorf(codes.InvalidArgument, "Maximum Append Size of %d Exceeded.", maxAppendBytes)
	}
	o := s.writer.submit(call.Context(), one)
	var wrong wrongRevision
	if errors.As(o.err, &wrong) {
		return call.SendAndClose(&streams.AppendResp{Result: &streams.AppendResp_WrongExpectedVersion_{WrongExpectedVersion: wrongOfAppend(options, wrong)}})
	}
	if o.err != nil {
		return failure(call, o.err)
	}
	return call.SendAndClose(&streams.AppendResp{Result: &streams.AppendResp_Success_{Success: appended(o)}})
}

func appended(o outcome) *streams.AppendResp_Success {
	success := &streams.AppendResp_Success{
		CurrentRevisionOption: &streams.AppendResp_Success_CurrentRevision{CurrentRevision: uint64(o.revision)},
		PositionOption:        &streams.AppendResp_Success_Position{Position: &streams.AppendResp_Position{CommitPosition: o.position, PreparePosition: o.position}},
	}
	if o.revision == noRevision {
		success.CurrentRevisionOption = &streams.AppendResp_Success_NoStream{NoStream: &shared.Empty{}}
	}
	return success
}

func wrongOfAppend(options *streams.AppendReq_Options, wrong wrongRevision) *streams.AppendResp_WrongExpectedVersion {
	answer := &streams.AppendResp_WrongExpectedVersion{}
	if wrong.current == noRevision {
		answer.CurrentRevisionOption = &streams.AppendResp_WrongExpectedVersion_CurrentNoStream{CurrentNoStream: &shared.Empty{}}
	} else {
		answer.CurrentRevisionOption = &streams.AppendResp_WrongExpectedVersion_CurrentRevision{CurrentRevision: uint64(wrong.current)}
	}
	switch options.GetExpectedStreamRevision().(type) {
	case *streams.AppendReq_Options_NoStream:
		answer.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedNoStream{ExpectedNoStream: &shared.Empty{}}
	case *streams.AppendReq_Options_StreamExists:
		answer.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedStreamExists{ExpectedStreamExists: &shared.Empty{}}
	case *streams.AppendReq_Options_Any:
		answer.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedAny{ExpectedAny: &shared.Empty{}}
	default:
		answer.ExpectedRevisionOption = &streams.AppendResp_WrongExpectedVersion_ExpectedRevision{ExpectedRevision: options.GetRevision()}
	}
	return answer
}

func expectedOfAppend(o *streams.AppendReq_Options) int64 {
	switch o.GetExpectedStreamRevision().(type) {
	case *streams.AppendReq_Options_NoStream:
		return expectNoStream
	case *streams.AppendReq_Options_StreamExists:
		return expectStreamExists
	case *streams.AppendReq_Options_Revision:
		return int64(min(o.GetRevision(), math.MaxInt64))
	default:
		return expectAny
	}
}

// proposedOf takes of an event's metadata what EventStoreDB keeps: its type, and whether it is JSON.
func proposedOf(m *streams.AppendReq_ProposedMessage) (proposed, error) {
	id, err := parseUUID(m.GetId())
	if err != nil {
		return proposed{}, err
	}
	eventType, contentType := m.GetMetadata()[keyType], m.GetMetadata()[keyContentType]
	if eventType == "" || contentType == "" {
		return proposed{}, status.Error(codes.InvalidArgument, "an event's metadata names its type and content-type")
	}
	if contentType != contentTypeJSON {
		contentType = contentTypeBinary
	}
	return proposed{id: id, metadata: eventMetadata(eventType, contentType), customMetadata: m.GetCustomMetadata(), data: m.GetData()}, nil
}

// Delete deletes a stream softly: it reads as if it had never been, and an append opens it again at the next revision.
func (s *streamsServer) Delete(ctx context.Context, r *streams.DeleteReq) (*streams.DeleteResp, error) {
	o := r.GetOptions()
	expected := expectAny
	switch o.GetExpectedStreamRevision().(type) {
	case *streams.DeleteReq_Options_NoStream:
		expected = expectNoStream
	case *streams.DeleteReq_Options_StreamExists:
		expected = expectStreamExists
	case *streams.DeleteReq_Options_Revision:
		expected = int64(min(o.GetRevision(), math.MaxInt64))
	}
	position, err := s.end(ctx, o.GetStreamIdentifier(), writeDelete, expected)
	if err != nil {
		return nil, err
	}
	return &streams.DeleteResp{PositionOption: &streams.DeleteResp_Position_{Position: &streams.DeleteResp_Position{CommitPosition: position, PreparePosition: position}}}, nil
}

// Tombstone ends a stream for good.
func (s *streamsServer) Tombstone(ctx context.Context, r *streams.TombstoneReq) (*streams.TombstoneResp, error) {
	o := r.GetOptions()
	expected := expectAny
	switch o.GetExpectedStreamRevision().(type) {
	case *streams.TombstoneReq_Options_NoStream:
		expected = expectNoStream
	case *streams.TombstoneReq_Options_StreamExists:
		expected = expectStreamExists
	case *streams.TombstoneReq_Options_Revision:
		expected = int64(min(o.GetRevision(), math.MaxInt64))
	}
	position, err := s.end(ctx, o.GetStreamIdentifier(), writeTombstone, expected)
	if err != nil {
		return nil, err
	}
	return &streams.TombstoneResp{PositionOption: &streams.TombstoneResp_Position_{Position: &streams.TombstoneResp_Position{CommitPosition: position, PreparePosition: position}}}, nil
}

func (s *streamsServer) end(ctx context.Context, id *shared.StreamIdentifier, kind writeKind, expected int64) (uint64, error) {
	stream, err := streamName(id)
	if err != nil {
		return 0, err
	}
	o := s.writer.submit(ctx, &write{stream: stream, kind: kind, expected: expected})
	if o.err != nil {
		return 0, failure(unaryTrailer{ctx}, o.err)
	}
	return o.position, nil
}

// Read answers reads and subscriptions, of a stream and of `$all`.
func (s *streamsServer) Read(r *streams.ReadReq, call streams.Streams_ReadServer) error {
	o := r.GetOptions()
	f, err := parseFilter(o.GetFilter())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	out := answer{call}
	switch {
	case o.GetSubscription() != nil && o.GetAll() != nil:
		err = s.subscribeToAll(o.GetAll(), f, out)
	case o.GetSubscription() != nil:
		err = s.subscribeToStream(o.GetStream(), out)
	case o.GetAll() != nil:
		err = s.readAll(o, f, out)
	default:
		err = s.readStream(o, out)
	}
	return failure(call, err)
}

// readAll sends what was there when it began, page by page.
func (s *streamsServer) readAll(o *streams.ReadReq_Options, f filter, out answer) error {
	backwards := o.GetReadDirection() == streams.ReadReq_Options_Backwards
	from, to := o.GetAll().GetPosition().GetCommitPosition(), uint64(math.MaxUint64)
	if o.GetAll().GetEnd() != nil {
		from = math.MaxUint64
	}
	for left := o.GetCount(); ; {
		v, _, err := s.store.acquire()
		if err != nil {
			return err
		}
		to = min(to, v.head)
		page, err := readAll(v, backwards, from, to, left, f)
		if err := joinRelease(s.store, v, err); err != nil {
			return err
		}
		if err := out.events(page.events); err != nil {
			return err
		}
		if page.done || out.call.Context().Err() != nil {
			return out.call.Context().Err()
		}
		from, left = page.next, left-uint64(len(page.events))
	}
}

// readStream sends what was there when it began, page by page.
func (s *streamsServer) readStream(o *streams.ReadReq_Options, out answer) error {
	stream, err := streamName(o.GetStream().GetStreamIdentifier())
	if err != nil {
		return err
	}
	backwards := o.GetReadDirection() == streams.ReadReq_Options_Backwards
	from, to := int64(min(o.GetStream().GetRevision(), math.MaxInt64)), int64(latest)
	if o.GetStream().GetEnd() != nil {
		from = latest
	}
	for left := o.GetCount(); ; {
		v, _, err := s.store.acquire()
		if err != nil {
			return err
		}
		page, err := readStream(v, stream, backwards, from, to, left, s.now())
		if err := joinRelease(s.store, v, err); err != nil {
			return err
		}
		if err := out.events(page.events); err != nil {
			return err
		}
		if page.done || out.call.Context().Err() != nil {
			return out.call.Context().Err()
		}
		from, to, left = page.next, min(to, page.last), left-uint64(len(page.events))
	}
}

func (s *streamsServer) subscribeToAll(o *streams.ReadReq_Options_AllOptions, f filter, out answer) error {
	after := o.GetPosition().GetCommitPosition()
	if o.GetEnd() != nil {
		v, _, err := s.store.acquire()
		if err != nil {
			return err
		}
		after = v.head
		if err := s.store.release(v); err != nil {
			return err
		}
	}
	if err := out.confirm(); err != nil {
		return err
	}
	return subscribeAll(out.call.Context(), s.store, after, f, out)
}

func (s *streamsServer) subscribeToStream(o *streams.ReadReq_Options_StreamOptions, out answer) error {
	stream, err := streamName(o.GetStreamIdentifier())
	if err != nil {
		return err
	}
	last, err := lastRevision(s.store, stream)
	if err != nil {
		return err
	}
	after := int64(noRevision)
	switch o.GetRevisionOption().(type) {
	case *streams.ReadReq_Options_StreamOptions_Revision:
		after = int64(min(o.GetRevision(), math.MaxInt64-1))
	case *streams.ReadReq_Options_StreamOptions_End:
		after = last
	}
	if err := out.confirm(); err != nil {
		return err
	}
	return subscribeStream(out.call.Context(), s.store, stream, after, s.now, out)
}

// answer puts what a read or a subscription sees on the wire.
type answer struct{ call streams.Streams_ReadServer }

func (a answer) confirm() error {
	return a.call.Send(&streams.ReadResp{Content: &streams.ReadResp_Confirmation{Confirmation: &streams.ReadResp_SubscriptionConfirmation{SubscriptionId: uuid.NewString()}}})
}

func (a answer) event(e *recorded) error {
	return a.call.Send(&streams.ReadResp{Content: &streams.ReadResp_Event{Event: &streams.ReadResp_ReadEvent{
		Event:    e,
		Position: &streams.ReadResp_ReadEvent_CommitPosition{CommitPosition: e.CommitPosition},
	}}})
}

func (a answer) events(all []*recorded) error {
	for _, e := range all {
		if err := a.event(e); err != nil {
			return err
		}
	}
	return nil
}

func (a answer) checkpoint(position uint64) error {
	return a.call.Send(&streams.ReadResp{Content: &streams.ReadResp_Checkpoint_{Checkpoint: &streams.ReadResp_Checkpoint{CommitPosition: position, PreparePosition: position}}})
}

func (a answer) caughtUp() error {
	return a.call.Send(&streams.ReadResp{Content: &streams.ReadResp_CaughtUp_{CaughtUp: &streams.ReadResp_CaughtUp{}}})
}

func (a answer) fellBehind() error {
	return a.call.Send(&streams.ReadResp{Content: &streams.ReadResp_FellBehind_{FellBehind: &streams.ReadResp_FellBehind{}}})
}

// trailers is a call whose trailers can be set.
type trailers interface{ SetTrailer(metadata.MD) }

// unaryTrailer sets the trailers of a unary call.
type unaryTrailer struct{ ctx context.Context }

func (u unaryTrailer) SetTrailer(md metadata.MD) {
	_ = grpc.SetTrailer(u.ctx, md) // fails only outside a call
}

// failure turns an error of the store into the status and trailers that the client knows. A stream that is not found is an ordinary answer
// of a read.
func failure(call trailers, err error) error {
	var (
		deleted  streamDeleted
		notFound streamNotFound
		wrong    wrongRevision
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &notFound):
		if read, ok := call.(streams.Streams_ReadServer); ok {
			return read.Send(&streams.ReadResp{Content: &streams.ReadResp_StreamNotFound_{StreamNotFound: &streams.ReadResp_StreamNotFound{
				StreamIdentifier: &shared.StreamIdentifier{StreamName: []byte(notFound.stream)},
			}}})
		}
		return status.Error(codes.NotFound, err.Error())
	case errors.As(err, &deleted):
		call.SetTrailer(metadata.Pairs("exception", "stream-deleted", "stream-name", deleted.stream))
		return status.Errorf(codes.FailedPrecondition, "Event stream '%s' is deleted.", deleted.stream)
	case errors.As(err, &wrong):
		call.SetTrailer(metadata.Pairs("exception", "wrong-expected-version",
			"expected-version", strconv.FormatInt(wrong.expected, 10), "actual-version", strconv.FormatInt(wrong.current, 10)))
		return status.Error(codes.FailedPrecondition, "Append failed due to WrongExpectedVersion. "+err.Error())
	case errors.Is(err, errFailed), errors.Is(err, errClosed):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.Error(codes.Internal, err.Error())
	}
}

func streamName(id *shared.StreamIdentifier) (string, error) {
	name := string(id.GetStreamName())
	if name == "" || name == metadataOf("") || len(name) > maxStreamName {
		return "", status.Errorf(codes.InvalidArgument, "a stream's name has 1 to %d bytes, and is not %q", maxStreamName, metadataOf(""))
	}
	return name, nil
}

func parseUUID(id *shared.UUID) (uuid.UUID, error) {
	if s := id.GetStructured(); s != nil {
		var u uuid.UUID
		binary.BigEndian.PutUint64(u[:8], uint64(s.MostSignificantBits))
		binary.BigEndian.PutUint64(u[8:], uint64(s.LeastSignificantBits))
		return u, nil
	}
	u, err := uuid.Parse(id.GetString_())
	if err != nil {
		return uuid.UUID{}, status.Error(codes.InvalidArgument, "an event needs a UUID")
	}
	return u, nil
}

func structured(id uuid.UUID) *shared.UUID {
	most, least := int64(binary.BigEndian.Uint64(id[:8])), int64(binary.BigEndian.Uint64(id[8:]))
	return &shared.UUID{Value: &shared.UUID_Structured_{Structured: &shared.UUID_Structured{MostSignificantBits: most, LeastSignificantBits: least}}}
}
